"""Decoding one token at a time over layers laid out for it, against reading the same tokens as a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.infer.generate import decode
from rcp.nn.cache import Context, Entries, KVCache, as_context, quantised, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.step import as_tokens, laid_out, room, step, unstacked
from tests.eviction.small import DIM, KV_HEADS, LAYERS, VOCABULARY, small_model

ROWS, NEW = 3, 5


@pytest.fixture(scope="module")
def model():
    return small_model()


def noise(seed: int, layers: int, capacity: int, weighed: bool) -> Entries:
    """Random entries: heads of unequal lengths, an empty one among them, and keep weights of which some are 0."""
    rng = np.random.default_rng(seed)
    shape = (layers, ROWS, capacity, KV_HEADS)
    k, v = (jnp.asarray(rng.normal(size=(*shape, DIM)) * 2, jnp.float32) for _ in range(2))
    length = jnp.asarray(rng.integers(0, capacity + 1, (layers, ROWS, KV_HEADS)), jnp.int32).at[0, 0, 0].set(0)
    keep = jnp.asarray(np.maximum(rng.uniform(-0.5, 1, shape), 0), jnp.float32) if weighed else None
    return Entries(k, v, jnp.zeros(shape, jnp.int32), length, keep)


def context_of(kind: str) -> Context | None:
    """Two runs of layers, of different capacities."""
    if kind == "none":
        return None
    sizes = ((1, 7), (LAYERS - 1, 4))
    runs = tuple(noise(i, layers, capacity, kind == "weighed") for i, (layers, capacity) in enumerate(sizes))
    context = Context(runs, jnp.asarray([11, 3, 8], jnp.int32))
    return quantised(context) if kind == "int8" else context


def tail_behind(model, context: Context | None, width: int) -> KVCache:
    """Rows of 4, 2 and 0 tokens that were read behind the context, in a tail with room for `width` tokens more."""
    tail = model.new_cache(ROWS, 4 + width) if context is None else tail_of(context, 4 + width, model.dtype)
    tokens = jnp.arange(ROWS * 4).reshape(ROWS, 4) % VOCABULARY
    valid = jnp.arange(4)[None] < jnp.asarray([4, 2, 0])[:, None]
    return read_chunk(model, tokens, tail, context=context, valid=valid)[1]


@pytest.mark.parametrize("kind", ["none", "plain", "weighed", "int8"])
def test_steps_are_chunks_of_one_token(model, kind):
    """Hidden states of every step, and the cache that the new tokens leave behind."""
    context = context_of(kind)
    tail = tail_behind(model, context, NEW)
    past, weights = laid_out(tail, context, slots=4), unstacked(model)
    one = jax.jit(lambda new, number, token, position: step(model, weights, past, new, number, token, position))
    chunk = jax.jit(lambda cache, token: read_chunk(model, token[:, None], cache, context=context)[:2])
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (NEW, ROWS))
    new, cache = room(model, ROWS, NEW), tail
    for number in range(NEW):
        token = jnp.asarray(tokens[number])
        h, new = one(new, jnp.int32(number), token, tail.position + number)
        expected, cache = chunk(cache, token)
        np.testing.assert_allclose(h, expected[:, 0], rtol=1e-4, atol=1e-4)
    for got, kept in zip(as_tokens(new, ROWS), (cache.k, cache.v), strict=True):
        for row, start in enumerate(np.asarray(tail.length)):
            np.testing.assert_allclose(got[:, row], kept[:, row, start : start + NEW], rtol=1e-4, atol=1e-4)


def test_rows_that_have_ended_do_not_disturb_the_others(model):
    """Each row alone decodes the same tokens, and the cache holds just what was decoded before its end."""
    context = context_of("plain")
    assert context is not None
    tail = tail_behind(model, context, NEW)
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, VOCABULARY)), jnp.float32)
    free, _ = decode(model, logits, tail, max_new=NEW, context=context)
    end = int(free.tokens[0, 1])  # the first row ends early
    out, cache = decode(model, logits, tail, max_new=NEW, context=context, eos_ids=(end,), pad_id=0)
    for row in range(ROWS):
        whole = free.tokens[row].tolist()
        length = whole.index(end) + 1 if end in whole else NEW
        assert out.tokens[row, :length].tolist() == whole[:length]
        read = length - 1 if end in whole else NEW  # the end itself is not read
        assert int(cache.length[row]) == int(tail.length[row]) + read
        assert int(cache.position[row]) == int(tail.position[row]) + read
    assert int(out.length[0]) < NEW


def test_more_tokens_than_there_is_room_for(model):
    cache = model.new_cache(1, 4)
    with pytest.raises(ValueError, match="4 slots has no room for 5"):
        decode(model, jnp.zeros((1, VOCABULARY)), cache, max_new=5, context=as_context(cache))
