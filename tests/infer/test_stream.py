"""Decoding behind a stream: against decoding with all entries, and against reading the same tokens as a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction import ADA, H2O, KeyDiff, SinksWindow, SnapKV, stream
from rcp.eviction.prompt import Eviction
from rcp.infer.generate import generate
from rcp.infer.sample import Sampling, sample_keys
from rcp.infer.stream import Spoken, decode_chunk, decode_stream, prefill_stream
from tests.eviction.small import small_model

CHUNK, NEW = 4, 10
ROWS = np.random.default_rng(3).integers(1, 24, (2, 8)).astype(np.int32)


def read(model, eviction, size, valid=None):
    """(logits, stream) behind the rows."""
    there = np.ones(ROWS.shape, bool) if valid is None else valid
    return jax.jit(lambda t, v: prefill_stream(model, t, eviction, size=size, chunk=CHUNK, valid=v))(ROWS, there)


def decoded(model, eviction, logits, state, new=NEW, eos=()):
    return jax.jit(
        lambda logits, state: decode_stream(model, logits, state, eviction, chunk=CHUNK, max_new=new, eos_ids=eos)
    )(logits, state)


def test_a_stream_that_holds_all_decodes_as_the_whole_cache():
    model, eviction = small_model(), Eviction(KeyDiff())
    found, state = decoded(model, eviction, *read(model, eviction, 24))
    whole = jax.jit(lambda tokens: generate(model, tokens, max_new=NEW))(jnp.asarray(ROWS))
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    np.testing.assert_array_equal(found.length, [NEW, NEW])
    assert (state.context.runs[0].length == ROWS.shape[1] + NEW).all()
    np.testing.assert_array_equal(state.context.position, [ROWS.shape[1] + NEW] * 2)


def test_padding_at_the_end_changes_nothing():
    model, eviction = small_model(), Eviction(H2O(), sinks=1)
    short = jax.jit(lambda t: prefill_stream(model, t, eviction, size=3, chunk=CHUNK))(ROWS[:1, :6])
    valid = np.arange(ROWS.shape[1])[None] < np.array([[6], [3]])
    logits, state = read(model, eviction, 3, valid)
    np.testing.assert_allclose(logits[:1], short[0], atol=5e-4)
    whole = model.logits(model.hidden(jnp.asarray(ROWS[1:, :3]))[:, -1])
    np.testing.assert_allclose(logits[1:], whole, atol=5e-4)
    np.testing.assert_array_equal(state.context.runs[0].position[:, :1], short[1].context.runs[0].position)


@pytest.mark.parametrize("repack", [False, True])
@pytest.mark.parametrize("policy", [SinksWindow(), KeyDiff(), H2O(), SnapKV(window=2)], ids=lambda p: p.name)
def test_one_token_at_a_time_leaves_what_their_chunks_leave(policy, repack):
    model, eviction = small_model(), Eviction(policy, sinks=1, recent=2, repack=repack)
    logits, state = read(model, eviction, 6)
    found, behind = decoded(model, eviction, logits, state, new=2 * CHUNK)
    for first in (0, CHUNK):
        _, state = stream.step(model, state, found.tokens[:, first : first + CHUNK], eviction)
    (own,), (theirs,) = behind.context.runs, state.context.runs
    np.testing.assert_array_equal(own.position, theirs.position)
    np.testing.assert_array_equal(own.length, theirs.length)
    np.testing.assert_array_equal(own.length, np.full_like(own.length, 6))
    np.testing.assert_allclose(own.k, theirs.k, atol=5e-4)
    np.testing.assert_array_equal(behind.context.position, state.context.position)


def test_rows_that_have_ended_read_nothing_more():
    model, eviction = small_model(), Eviction(SinksWindow(), sinks=1)
    logits, state = read(model, eviction, 24)
    free, _ = decoded(model, eviction, logits, state)
    ended = int(free.tokens[0, 2])
    found, behind = decoded(model, eviction, logits, state, eos=(ended,))
    for row in range(2):
        said = np.asarray(free.tokens[row]).tolist()
        length = said.index(ended) + 1 if ended in said else NEW
        assert found.length[row] == length and found.tokens[row, :length].tolist() == said[:length]
        assert not found.tokens[row, length:].any()
        assert (behind.context.runs[0].length[:, row] == ROWS.shape[1] + length).all()


def test_memory_does_not_grow_with_the_answer():
    model, eviction = small_model(), Eviction(SinksWindow(), sinks=1)
    logits, state = read(model, eviction, 6)

    def temporary(new):
        made = jax.jit(lambda logits, state: decode_stream(model, logits, state, eviction, chunk=CHUNK, max_new=new))
        return made.lower(logits, state).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(64), temporary(4096)
    assert short > 0 and long <= short + 4096 * len(ROWS) * 4  # the tokens said, at most


def test_a_call_a_chunk_says_what_one_call_says():
    """By draws, with heads that share a budget unevenly; a row that has ended is silent."""
    model, eviction = small_model(), Eviction(KeyDiff(), ADA, sinks=1)
    budget, drawn = jnp.asarray([4, 5]), Sampling(sample_keys(2, jnp.arange(2), 1).reshape(-1), 0.8)
    options = {"chunk": CHUNK, "budget": budget, "sampling": drawn}

    def start(tokens):
        return prefill_stream(model, tokens, eviction, size=6, chunk=CHUNK, budget=budget)

    logits, state = jax.jit(start)(ROWS)
    assert np.asarray(state.context.runs[0].length).sum(axis=(0, 2)).tolist() == [4 * 4, 5 * 4]
    free = jax.jit(lambda logits, state: decode_stream(model, logits, state, eviction, max_new=NEW, **options))
    ended = int(free(logits, state)[0].tokens[0, 5])
    once = jax.jit(
        lambda logits, state: decode_stream(model, logits, state, eviction, max_new=NEW, eos_ids=(ended,), **options)
    )
    expected, behind = once(logits, state)
    say = jax.jit(
        lambda spoken, first: decode_chunk(
            model, spoken, eviction, first=first, most=NEW - first, eos_ids=(ended,), **options
        )
    )
    spoken, said = Spoken(logits, state, jnp.zeros((2,), bool)), [[], []]
    for first in range(0, NEW, CHUNK):
        found, spoken = say(spoken, first)
        for row, (tokens, length) in enumerate(zip(np.asarray(found.tokens), np.asarray(found.length), strict=True)):
            said[row] += tokens[:length].tolist()
    for row in range(2):
        assert said[row] == np.asarray(expected.tokens)[row, : expected.length[row]].tolist()
    assert expected.length[0] <= 6 and bool(spoken.done[0])
    np.testing.assert_array_equal(spoken.stream.context.runs[0].position, behind.context.runs[0].position)
