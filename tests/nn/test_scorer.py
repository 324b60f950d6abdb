"""What a scorer may look at, and what its scores may depend on."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.nn.scorer import POOLED, Scorer, ScorerConfig, early_features, piece_features, question_first
from rcp.types import Batch, Role
from tests.tiny import Prompt, batch_of, tiny_model, tiny_scorer

KINDS = ("hidden", "mlp", "pooled", "linear", "standalone")
EVERY_KIND = (*KINDS, "llmlingua2")  # which is blind to the question: see test_encoder.py
LENGTH, SEGMENTS = 20, 4
ROWS = (Prompt((2, 3, 1), instruction=2, answer=2), Prompt((1, 3, 2, 3), instruction=0, question=3))
MODEL, MODEL_PARAMS = nnx.split(tiny_model())


def features_of(kind: str, batch: Batch):
    """What a scorer of this kind reads of the tiny model."""
    if kind == "standalone":
        return None
    model = nnx.merge(MODEL, MODEL_PARAMS)
    if kind in POOLED:
        return piece_features(model, batch, 1)
    return early_features(model, batch, 1, blind=kind == "llmlingua2")


@cache
def scorer_of(kind: str):
    """(parameters, compiled function of parameters and batch)."""
    graph, params = nnx.split(tiny_scorer(kind))

    def score(params, batch: Batch):
        batch = jax.tree.map(jnp.asarray, batch)
        return nnx.merge(graph, params)(batch, features_of(kind, batch))

    return params, jax.jit(score)


def scores(kind: str, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Scores of context tokens and of segments that there are; 0 elsewhere."""
    params, score = scorer_of(kind)
    found = score(params, batch)
    there = (batch.segment[..., None] == np.arange(SEGMENTS)).any(1)
    return np.where(batch.role == Role.CONTEXT, found.tokens, 0), np.where(there, found.segments, 0)


def close(found, expected):
    for x, y in zip(found, expected):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_not_looked_at_and_the_question_is(kind):
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    expected = scores(kind, batch)

    def changed(role: Role) -> Batch:
        return batch._replace(tokens=np.where(batch.role == role, 23 - batch.tokens, batch.tokens))

    close(scores(kind, changed(Role.ANSWER)), expected)
    without = batch.role == Role.ANSWER
    cut = batch._replace(role=np.where(without, Role.PAD, batch.role).astype(np.int8))
    close(scores(kind, cut), expected)
    asked = scores(kind, changed(Role.QUESTION))
    assert np.abs(asked[0] - expected[0]).max() > 0.01
    assert np.abs(asked[1] - expected[1]).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_do_not_matter(kind):
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    expected = scores(kind, batch)
    noise = np.random.default_rng(0).integers(1, 20, batch.tokens.shape)
    close(scores(kind, batch._replace(tokens=np.where(batch.role == Role.PAD, noise, batch.tokens))), expected)
    close(scores(kind, jax.tree.map(lambda x: x[::-1], batch)), [x[::-1] for x in expected])
    tokens, segments = scores(kind, batch_of(ROWS, LENGTH + 4, SEGMENTS))
    close((tokens[:, :LENGTH], segments), expected)


def test_the_standalone_scorer_does_not_mind_the_order_of_segments():
    """Permuting segments permutes their scores and those of their tokens."""
    batch = batch_of(ROWS[1:], LENGTH, SEGMENTS)
    tokens, segments = scores("standalone", batch)
    sizes, order = ROWS[1].segments, [2, 0, 3, 1]
    spans = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])  # no instruction: the context comes first
    moved = np.concatenate([spans[s] for s in order])
    permuted = np.array(batch.tokens)
    permuted[0, : len(moved)] = batch.tokens[0, moved]
    number = np.array(batch.segment)
    number[0, : len(moved)] = np.repeat(np.arange(4), [sizes[s] for s in order])
    other = scores("standalone", batch._replace(tokens=permuted, segment=number))
    close((other[0][0, : len(moved)], other[1][0]), (tokens[0, moved], segments[0, order]))


def test_the_question_is_read_first_and_the_answer_never():
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    order, valid = jax.jit(question_first)(batch)
    for row, prompt in enumerate(ROWS):
        roles = batch.role[row][np.asarray(order)[row][np.asarray(valid)[row]]]
        sizes = (prompt.question, prompt.instruction, sum(prompt.segments))
        np.testing.assert_array_equal(roles, np.repeat([Role.QUESTION, Role.INSTRUCTION, Role.CONTEXT], sizes))


def test_early_features_are_those_of_the_reordered_prompt():
    batch = batch_of(ROWS[:1], LENGTH, SEGMENTS)
    model = nnx.merge(MODEL, MODEL_PARAMS)
    features = jax.jit(lambda batch: early_features(model, batch, 1))(batch)
    places = [np.flatnonzero(batch.role[0] == role) for role in (Role.QUESTION, Role.INSTRUCTION, Role.CONTEXT)]
    order = np.concatenate(places)
    expected = jax.jit(lambda tokens: model.hidden(tokens, stop=1))(batch.tokens[:, order])
    np.testing.assert_allclose(features[0][order], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_scores_start_small_and_every_parameter_learns(kind):
    """Gradients are finite with padding and a segment number that no token has."""
    batch = batch_of(ROWS[:1], LENGTH, SEGMENTS)
    params, score = scorer_of(kind)
    weight = np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)

    def total(params):
        found = score(params, batch)
        return jnp.sum(found.tokens[0] * weight) + jnp.sum(found.segments[0, :3])

    slope = jax.jit(jax.grad(total))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path
    fresh = Scorer(ScorerConfig(kind, 24 if kind == "standalone" else 16, 16, 1, 2), nnx.Rngs(0))
    head = {"llmlingua2": "token_head", "linear": "into"}.get(kind, "segment_head")
    assert np.abs(getattr(fresh, head)[...]).max() < 0.1


def test_features_are_asked_for():
    with pytest.raises(ValueError, match='the "mlp" scorer needs features'):
        tiny_scorer("mlp")(batch_of(ROWS, LENGTH, SEGMENTS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scorer_that_is_told_the_budget_heeds_it_and_needs_it(kind):
    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, LENGTH, SEGMENTS))
    scorer = tiny_scorer(kind, budget=True)
    features = features_of(kind, batch)
    little, much = (scorer(batch, features, jnp.full(2, budget, jnp.int32)) for budget in (1, 4))
    assert np.abs(little.segments - much.segments).max() > 1e-3
    assert np.abs(little.tokens - much.tokens).max() > 1e-3
    one = scorer(batch, features, jnp.array([1, 4], jnp.int32))  # each prompt by its own
    np.testing.assert_allclose(one.segments, np.stack([little.segments[0], much.segments[1]]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="needs the budget"):
        scorer(batch, features)


@pytest.mark.parametrize("kind", POOLED)
def test_a_pooled_scorer_ranks_a_segment_by_what_it_says_and_not_by_its_place(kind):
    """Two prompts of the same segments in another order have the same scores in that order."""
    batch = batch_of((Prompt((2, 2, 2)), Prompt((2, 2, 2))), LENGTH, SEGMENTS)
    pieces = np.random.default_rng(0).normal(size=(SEGMENTS + 1, 16)).astype(np.float32)
    turned = np.concatenate([np.roll(pieces[:3], 1, axis=0), pieces[3:]])
    found = tiny_scorer(kind)(jax.tree.map(jnp.asarray, batch), jnp.stack([pieces, turned]))
    np.testing.assert_allclose(found.segments[1, :3], np.roll(found.segments[0, :3], 1), rtol=1e-4, atol=1e-5)


def test_a_scorer_that_is_told_the_group_has_weights_for_each():
    """Scores are those of a scorer that knows no groups and whose weights are the shared ones and the group's."""
    batch = jax.tree.map(jnp.asarray, batch_of((Prompt((2, 2, 2)),) * 3, LENGTH, SEGMENTS))
    batch = batch._replace(group=jnp.array([0, 1, 1], jnp.int32))
    rng = np.random.default_rng(0)
    pieces = jnp.asarray(np.repeat(rng.normal(size=(1, SEGMENTS + 1, 16)), 3, axis=0).astype(np.float32))
    own = rng.normal(size=(2, 16)).astype(np.float32)
    told = tiny_scorer("linear", groups=2)
    plain = tiny_scorer("linear")
    np.testing.assert_array_equal(told(batch, pieces).segments, plain(batch, pieces).segments)  # before it learns
    told.of_group[...] = own
    found, shared = np.asarray(told(batch, pieces).segments), np.asarray(plain.into[...])
    for group, rows in ((0, [0]), (1, [1, 2])):
        plain.into[...] = shared + own[group][:, None]
        np.testing.assert_allclose(found[rows], plain(batch, pieces).segments[np.array(rows)], rtol=1e-4, atol=1e-5)


def test_products_make_a_learned_likeness_to_the_question():
    """With a weight of 1 on each, a segment's score is the dot product of its state and the question's."""
    batch = jax.tree.map(jnp.asarray, batch_of((Prompt((2, 2, 2)),), LENGTH, SEGMENTS))
    pieces = jnp.asarray(np.random.default_rng(0).normal(size=(1, SEGMENTS + 1, 16)).astype(np.float32))
    scorer, plain = tiny_scorer("linear", products=True), tiny_scorer("linear")
    np.testing.assert_array_equal(scorer(batch, pieces).segments, plain(batch, pieces).segments)  # before it learns
    scorer.product[...] = jnp.ones((16, 1))
    more = np.asarray(scorer(batch, pieces).segments - plain(batch, pieces).segments)[0, :3]
    states = np.asarray(pieces)[0, :3]
    np.testing.assert_allclose(more, (states - states.mean(0)) @ np.asarray(pieces)[0, -1], rtol=1e-4, atol=1e-4)


def test_piece_features_are_means_of_centred_states():
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    model = nnx.merge(MODEL, MODEL_PARAMS)
    states = np.asarray(early_features(model, batch, 1))
    pieces = np.asarray(piece_features(model, batch, 1))
    for row, prompt in enumerate(ROWS):
        read = states[row][(batch.role[row] != Role.PAD) & (batch.role[row] != Role.ANSWER)]
        centred = states[row] - read.mean(0)
        centred = (centred - centred.mean(1, keepdims=True)) / np.sqrt(centred.var(1, keepdims=True) + 1e-5)
        for s in range(len(prompt.segments)):
            expected = centred[batch.segment[row] == s].mean(0)
            np.testing.assert_allclose(pieces[row, s], expected, rtol=1e-3, atol=1e-4)
        asked = centred[batch.role[row] == Role.QUESTION].mean(0)
        np.testing.assert_allclose(pieces[row, -1], asked, rtol=1e-3, atol=1e-4)


@pytest.mark.strict_dtype
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_dtypes_are_strict(kind):
    params, score = scorer_of(kind)
    found = jax.eval_shape(lambda p, b: score.__wrapped__(p, b), params, batch_of(ROWS, LENGTH, SEGMENTS))
    assert (found.tokens.dtype, found.segments.dtype) == (jnp.float32, jnp.float32)
    assert found.tokens.shape == (2, LENGTH) and found.segments.shape == (2, SEGMENTS)
