"""LLMLingua-2's classifier: it looks both ways in the context, never at the question, and learns what labels show."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rcp.nn.pruner import prune
from rcp.nn.scorer import Scorer, ScorerConfig, early_features
from rcp.objectives import Labels, Outcome, Settings
from rcp.objectives.supervised import bce
from rcp.types import Batch, Role
from tests.tiny import VOCABULARY, Prompt, batch_of, tiny_model, tiny_scorer

ROWS = (Prompt((2, 3, 1), instruction=2, answer=2), Prompt((1, 3, 2, 3), instruction=0, question=3))
LENGTH, SEGMENTS = 20, 4
MODEL = tiny_model()
GRAPH, PARAMS = nnx.split(tiny_scorer("llmlingua2", depth=2))


@jax.jit
def scores(batch: Batch):
    return nnx.merge(GRAPH, PARAMS)(batch, early_features(MODEL, batch, 1, blind=True))


def changed(batch: Batch, place: np.ndarray) -> Batch:
    return batch._replace(tokens=np.where(place, (batch.tokens + 7) % (VOCABULARY - 1) + 1, batch.tokens))


def test_a_later_token_changes_the_score_of_an_earlier_one_and_an_earlier_one_that_of_a_later():
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    expected, (first, last) = scores(batch).tokens, (np.zeros_like(batch.forced) for _ in range(2))
    context = [np.flatnonzero(role == Role.CONTEXT) for role in batch.role]
    for row, places in enumerate(context):
        first[row, places[0]] = last[row, places[-1]] = True
    forward, backward = scores(changed(batch, first)).tokens, scores(changed(batch, last)).tokens
    for row, places in enumerate(context):
        assert np.abs(backward[row, places[0]] - expected[row, places[0]]) > 1e-3
        assert np.abs(forward[row, places[-1]] - expected[row, places[-1]]) > 1e-3


@pytest.mark.parametrize("role", [Role.QUESTION, Role.ANSWER, Role.PAD])
def test_question_answer_and_padding_change_nothing(role):
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    expected, found = scores(batch), scores(changed(batch, batch.role == role))
    context = batch.role == Role.CONTEXT
    np.testing.assert_allclose(np.asarray(found.tokens)[context], np.asarray(expected.tokens)[context], rtol=1e-5)
    np.testing.assert_allclose(found.segments, expected.segments, rtol=1e-4, atol=1e-6)


def test_padding_to_another_length_changes_nothing():
    """Past `DENSE_LIMIT` too, where attention goes over blocks of queries."""
    expected = scores(batch_of(ROWS, LENGTH, SEGMENTS)).tokens
    for length in (LENGTH + 4, 520):
        batch = batch_of(ROWS, length, SEGMENTS)
        found, context = scores(batch).tokens[:, :LENGTH], batch.role[:, :LENGTH] == Role.CONTEXT
        np.testing.assert_allclose(np.asarray(found)[context], np.asarray(expected)[context], rtol=1e-4, atol=1e-5)


def test_it_spends_exactly_the_budget_and_segments_have_the_mean_of_their_tokens():
    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, LENGTH, SEGMENTS))
    found = scores(batch)
    for granularity in ("token", "segment", "two_stage"):
        pruned = prune(found, batch, jnp.array([2, 5], jnp.int32), granularity=granularity)
        np.testing.assert_array_equal(pruned.kept, [2, 5])
    for row in range(2):
        for segment in range(len(ROWS[row].segments)):
            own = np.asarray(found.tokens)[row][np.asarray(batch.segment)[row] == segment]
            np.testing.assert_allclose(found.segments[row, segment], own.mean(), rtol=1e-4, atol=1e-5)


def test_it_learns_what_only_the_text_behind_a_token_shows():
    """The first segment is needed where the second consists of 3s, and not where of 4s."""
    rng = np.random.default_rng(0)
    batch = batch_of([Prompt((6, 6), instruction=0, question=1)] * 64, 16, 2)
    drawn = rng.integers(5, VOCABULARY, batch.tokens.shape).astype(np.int32)
    drawn[:, 6:12] = rng.integers(3, 5, (64, 1))
    batch = batch._replace(tokens=np.where(batch.role == Role.CONTEXT, drawn, batch.tokens))
    needed = np.broadcast_to(drawn[:, 11:12] == 3, drawn.shape)
    context = batch.role == Role.CONTEXT
    context[:, 6:] = False
    labels = Labels(np.zeros((64, 2), np.float32), np.where(context, needed, -1.0).astype(np.float32))
    graph, params = nnx.split(Scorer(ScorerConfig("llmlingua2", 16, 32, 1, 2), nnx.Rngs(0)))
    features = early_features(MODEL, jax.tree.map(jnp.asarray, batch), 0, blind=True)
    optimizer = optax.adam(1e-2)

    def loss(params, rows):
        part, own = jax.tree.map(lambda x: jnp.asarray(x)[rows], (batch, labels))
        found = nnx.merge(graph, params)(part, features[rows])
        empty = dict.fromkeys(("keep", "nll", "kl", "asked", "draws", "multiplier"))
        outcome = Outcome(part, found.tokens, found.segments, own, **empty)
        return jnp.mean(bce(outcome, Settings(granularity="token"))), found.tokens

    @jax.jit
    def train(params):
        def step(carry, _):
            slope = jax.grad(lambda p: loss(p, np.arange(48))[0])(carry[0])
            updates, state = optimizer.update(slope, carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)[0][0]

    held = np.arange(48, 64)
    found = jax.jit(loss)(train(params), held)[1]
    assert ((np.asarray(found) > 0) == needed[held])[context[held]].mean() > 0.9
