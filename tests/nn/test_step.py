"""Decoding one token at a time over layers laid out for it, against reading the same tokens as a chunk."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.infer.generate import decode
from rcp.nn.cache import Context, Entries, KVCache, as_context, quantised, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.step import as_tokens, joined, laid_cache, laid_context, room, step, unstacked
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
    past, weights = laid_cache(tail, 4), unstacked(model)
    if context is not None:
        past = joined(laid_context(context), past)
    one = jax.jit(lambda new, number, token, position: step(model, weights, past, new, number, token, position))
    chunk = jax.jit(lambda cache, token: read_chunk(model, token[:, None], cache, context=context)[:2])
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (NEW, ROWS))
    new, cache = room(model, ROWS, NEW), tail
    for number in range(NEW):
        token = jnp.asarray(tokens[number])
        h, new = one(new, jnp.int32(number), token[:, None], tail.position + number)
        expected, cache = chunk(cache, token)
        np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-4)
    for got, kept in zip(as_tokens(new, ROWS), (cache.k, cache.v), strict=True):
        for row, start in enumerate(np.asarray(tail.length)):
            np.testing.assert_allclose(got[:, row], kept[:, row, start : start + NEW], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "weighed"])
def test_several_tokens_at_once_are_as_many_steps(model, kind):
    """Of a block that begins behind a token that was read before, each token sees those before it alone."""
    context, number = context_of(kind), 1
    tail = tail_behind(model, context, NEW)
    past, weights = laid_cache(tail, 4), unstacked(model)
    if context is not None:
        past = joined(laid_context(context), past)
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, (ROWS, NEW))
    run = jax.jit(lambda new, number, token, position: step(model, weights, past, new, number, token, position))
    apart, new = [], room(model, ROWS, NEW)
    for place in range(NEW):
        h, new = run(new, jnp.int32(place), tokens[:, place : place + 1], tail.position + place)
        apart.append(h)
    _, first = run(room(model, ROWS, NEW), jnp.int32(0), tokens[:, :number], tail.position)
    h, together = run(first, jnp.int32(number), tokens[:, number:], tail.position + number)
    np.testing.assert_allclose(h, np.concatenate(apart[number:], axis=1), rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), together, new)


def one_row(x: Any, row: int) -> Any:
    """Of a tail or a context: arrays of layers have the examples second."""
    return jax.tree.map(lambda a: a[row : row + 1] if a.ndim == 1 else a[:, row : row + 1], x)


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
        alone, kept = decode(
            model, logits[row : row + 1], one_row(tail, row), max_new=NEW, context=one_row(context, row)
        )
        assert alone.tokens[0].tolist() == whole
        slots = int(cache.length[row])
        np.testing.assert_allclose(cache.k[:, row, :slots], kept.k[:, 0, :slots], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(cache.v[:, row, :slots], kept.v[:, 0, :slots], rtol=1e-4, atol=1e-4)
    assert int(out.length[0]) < NEW


def test_more_tokens_than_there_is_room_for(model):
    cache = model.new_cache(1, 4)
    with pytest.raises(ValueError, match="4 slots has no room for 5"):
        decode(model, jnp.zeros((1, VOCABULARY)), cache, max_new=5, context=as_context(cache))
