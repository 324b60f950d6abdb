"""Entries that leave the cache: the same numbers as reading whole sequences under the step function."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction import dynamic
from rcp.infer.dynamic import DynamicModel
from rcp.nn.gated import read_gated
from rcp.nn.interaction import init_interaction
from rcp.types import UserError
from tests.eviction.small import LAYERS, VOCABULARY, small_model

TOKENS = 15
IDS = np.random.default_rng(1).integers(1, VOCABULARY, (2, TOKENS)).astype(np.int32)
MODEL = small_model()
GATES = init_interaction(LAYERS, 16, 4, 1.0, jax.random.key(0))


@pytest.fixture(scope="module")
def masked():
    """The whole sequences, read through masks."""
    return jax.jit(lambda tokens: read_gated(MODEL, GATES, tokens, alpha=None))(IDS)


@jax.jit
def read(state, tokens, lengths):
    return dynamic.read(MODEL, GATES, state, tokens, lengths=lengths)


compacted = jax.jit(dynamic.compacted, static_argnames="capacities")


def in_chunks(chunk: int, capacities, room: int = 0) -> tuple[np.ndarray, np.ndarray, dynamic.DynamicContext]:
    """States, how many entries each token saw, and what is left in the end."""
    state, states, seen = dynamic.start(MODEL, GATES, 2, room), [], []
    for first in range(0, TOKENS, chunk):
        found = read(state, IDS[:, first : first + chunk], np.full(2, chunk, np.int32))
        states.append(found.h)
        seen.append(found.visible)
        state = compacted(found, capacities=capacities(found))
        kept = np.concatenate([np.asarray(run.length) for run in state.context.runs])
        np.testing.assert_array_equal(kept, np.broadcast_to(np.asarray(found.keep).sum(-1)[..., None], kept.shape))
    return np.concatenate(states, 1), np.concatenate(seen, 2), state


@pytest.mark.parametrize("chunk", [15, 5])
def test_compacted_reading_is_masked_reading(masked, chunk):
    """Layers have capacities of their own, as small as can be, and what is not there any more is not missed."""
    h, seen, state = in_chunks(chunk, lambda found: tuple(int(x) for x in found.needed))
    np.testing.assert_allclose(h, masked.h, atol=3e-5)
    np.testing.assert_allclose(seen[:, :, :-1].sum(-1), masked.kept * 14 * 13 / 2, rtol=1e-5)
    capacities = [run.capacity for run in state.context.runs for _ in range(run.k.shape[0])]
    assert min(capacities) < TOKENS
    assert (np.asarray(state.context.position) == TOKENS).all()


def test_one_token_at_a_time_is_the_same(masked):
    h = in_chunks(1, lambda found: TOKENS, TOKENS)[0]
    np.testing.assert_allclose(h, masked.h, atol=3e-5)


def test_layers_that_need_more_than_there_is_yet():
    """A prompt of one chunk, whose layers are given unequal room that goes beyond it."""
    prompt, room = IDS[0, :8].tolist(), 8
    small = DynamicModel(MODEL, GATES, chunk=8, multiple=1, runs=LAYERS)
    assert len(set(small.read([prompt], room=room).capacities)) > 1
    wide = DynamicModel(MODEL, GATES, chunk=8, multiple=64, runs=1)
    assert small.answer([prompt], max_new=room) == wide.answer([prompt], max_new=room)


def test_a_shift_drops_more_or_less():
    """Of the same chunk: an entry that is left at a lower shift is left at a higher one in the first layer."""

    @jax.jit
    def keep(shift):
        return dynamic.read(MODEL, GATES, dynamic.start(MODEL, GATES, 2), IDS, shift=shift).keep

    low, middle, high = (np.asarray(keep(jnp.float32(shift))) for shift in (-1.0, 0.0, 1e6))
    assert low[0].sum() < middle[0].sum() < high[0].sum() == 2 * TOKENS
    assert np.all(middle[0] | ~low[0])
    assert high.all()


def test_generation_goes_on_as_masked_reading_would():
    """Prompts of unequal length, read in chunks; every new token is the likeliest one after all before it."""
    model = DynamicModel(MODEL, GATES, chunk=8, multiple=4, runs=2)
    prompts = [IDS[0].tolist(), IDS[1, :6].tolist()]
    read = model.read(prompts, room=3)
    assert read.kept.shape == (LAYERS, 2) and np.all(read.kept <= read.tokens[None])
    assert read.kept.sum() < LAYERS * read.tokens.sum()
    width = max(map(len, prompts)) + 3
    rows = np.zeros((2, width), np.int32)
    answers = model.answer(prompts, max_new=3)
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        row[: len(prompt) + 3] = [*prompt, *answer]

    @partial(jax.jit)
    def greedy(tokens, lengths):
        return jnp.argmax(MODEL.logits(read_gated(MODEL, GATES, tokens, alpha=None, lengths=lengths).h), axis=-1)

    likeliest = np.asarray(greedy(rows, np.asarray([len(prompt) + 3 for prompt in prompts], np.int32)))
    for best, prompt, answer in zip(likeliest, prompts, answers, strict=True):
        assert best[len(prompt) - 1 : len(prompt) + 2].tolist() == answer
    ended = [answer.index(answers[0][1]) + 1 if answers[0][1] in answer else 3 for answer in answers]
    stopping = DynamicModel(MODEL, GATES, chunk=8, multiple=4, runs=2, eos_ids=(answers[0][1],))
    assert stopping.answer(prompts, max_new=3) == [a[:length] for a, length in zip(answers, ended, strict=True)]
    with pytest.raises(UserError, match="1 prompts: expected at least one, and none of them empty"):
        model.read([[]])
