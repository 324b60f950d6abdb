"""The reading of a gold answer, and that reading a compacted prompt is reading with a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.nn.pruner import compact
from rcp.nn.reader import CHUNK, next_token, read
from rcp.types import Role
from tests.tiny import Prompt, batch_of, tiny_model

LENGTH, MAX_ANSWER = 20, 4
ROWS = (Prompt((2, 3, 1), answer=3), Prompt((1, 3, 2, 3), instruction=0, question=3, answer=1), Prompt((4,), answer=4))
GRAPH, PARAMS = nnx.split(tiny_model())
GRAPH_WIDTH = PARAMS["embedding"].shape[-1]


@pytest.fixture(scope="module")
def batch():
    return batch_of(ROWS, LENGTH, 4)


@pytest.fixture(scope="module")
def reading():
    @jax.jit
    def run(batch, keep=None, positions=None):
        model = nnx.merge(GRAPH, PARAMS)
        return read(model, batch, max_answer=MAX_ANSWER, keep=keep, positions=positions, log_probs=True)

    return run


def test_it_measures_the_gold_answer(batch, reading):
    found = reading(batch)
    logits = jax.jit(lambda tokens: nnx.merge(GRAPH, PARAMS)(tokens, valid=batch.role != Role.PAD))(batch.tokens)
    log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    for row, prompt in enumerate(ROWS):
        places = np.flatnonzero(batch.role[row] == Role.ANSWER)
        assert len(places) == prompt.answer == found.answer_tokens[row]
        targets = batch.tokens[row, places]
        expected = -log_probs[row, places - 1, targets]
        np.testing.assert_allclose(found.nll_sum[row], expected.sum(), rtol=1e-4)
        np.testing.assert_allclose(found.nll[row], expected.mean(), rtol=1e-4)
        np.testing.assert_array_equal(found.answer_mask[row], np.arange(MAX_ANSWER) < prompt.answer)
        np.testing.assert_allclose(found.log_probs[row, : prompt.answer], log_probs[row, places - 1], atol=1e-4)
        assert bool(found.exact[row]) == (log_probs[row, places - 1].argmax(-1) == targets).all()


def test_exact_means_that_greedy_decoding_gives_the_answer(batch, reading):
    """The model's own continuation, put in as the gold answer, is exact; with one token changed it is not."""
    tokens = np.array(batch.tokens)
    for step in range(MAX_ANSWER):
        best = np.asarray(reading(batch._replace(tokens=tokens)).log_probs).argmax(-1)
        for row, prompt in enumerate(ROWS):
            if step < prompt.answer:
                tokens[row, np.flatnonzero(batch.role[row] == Role.ANSWER)[step]] = best[row, step]
    assert reading(batch._replace(tokens=tokens)).exact.all()
    wrong = np.array(tokens)
    last = [np.flatnonzero(row == Role.ANSWER)[-1] for row in batch.role]
    wrong[np.arange(3), last] = (wrong[np.arange(3), last] + 1) % 24
    assert not reading(batch._replace(tokens=wrong)).exact.any()


def test_reading_a_compacted_prompt_in_its_old_places_is_reading_with_the_mask(batch, reading):
    keep = np.random.default_rng(0).random(batch.role.shape) < 0.5
    keep |= (batch.role != Role.CONTEXT) & (batch.role != Role.PAD)
    places = batch._replace(tokens=np.broadcast_to(np.arange(LENGTH, dtype=np.int32), batch.tokens.shape))
    small, positions = (compact(x, jnp.asarray(keep), LENGTH) for x in (batch, places))
    masked = reading(batch, keep.astype(np.float32))
    dropped = reading(small, None, positions.tokens)
    np.testing.assert_allclose(masked.nll_sum, dropped.nll_sum, rtol=1e-4)
    np.testing.assert_allclose(
        masked.log_probs[masked.answer_mask], dropped.log_probs[dropped.answer_mask], rtol=1e-3, atol=1e-4
    )
    repacked = reading(small)
    assert np.abs(repacked.nll_sum - dropped.nll_sum).max() > 1e-3  # other positions do make a difference


def test_a_compacted_prompt_is_the_shorter_prompt(batch, reading):
    """Without a segment, and written without it from the start."""
    whole = batch_of((Prompt((2, 3)),), LENGTH, 4)
    small = compact(whole, jnp.asarray(whole.segment != 1), LENGTH)
    keep = np.flatnonzero((whole.role[0] != Role.PAD) & (whole.segment[0] != 1))
    for name in ("tokens", "role"):
        np.testing.assert_array_equal(getattr(small, name)[0, : len(keep)], getattr(whole, name)[0, keep])


def test_a_dropped_token_changes_nothing(batch, reading):
    keep = np.where(batch.segment == 0, 0.0, 1.0).astype(np.float32)
    other = batch._replace(tokens=np.where(batch.segment == 0, 7, batch.tokens))
    np.testing.assert_array_equal(reading(batch, keep).nll_sum, reading(other, keep).nll_sum)


def test_a_prompt_without_an_answer_costs_nothing(batch, reading):
    role = np.where(batch.role == Role.ANSWER, Role.PAD, batch.role).astype(np.int8)
    found = reading(batch._replace(role=role))
    assert found.answer_tokens.tolist() == [0, 0, 0]
    assert found.nll.tolist() == [0, 0, 0]


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_places_beyond_a_chunk_are_scored_alike_and_differentiably(share):
    """More places than `CHUNK` give the values and gradients of the whole at once, at those that are asked for."""
    count = CHUNK + 44
    states = jax.random.normal(jax.random.key(0), (2, count // 2, GRAPH_WIDTH))
    target = jax.random.randint(jax.random.key(1), (2, count // 2), 0, 5, jnp.int32)
    there = jax.random.uniform(jax.random.key(2), target.shape) < share

    def whole(states):
        log_probs = jax.nn.log_softmax(nnx.merge(GRAPH, PARAMS).logits(states), axis=-1)
        nll = -jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]
        return jnp.where(there, nll, 0.0), jnp.where(there, jnp.argmax(log_probs, axis=-1), 0)

    def chunked(states):
        return next_token(nnx.merge(GRAPH, PARAMS), states, target, there)

    for found, expected in zip(chunked(states), whole(states)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [jax.grad(lambda x, f=f: f(x)[0].sum())(states) for f in (chunked, whole)]
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-6)
