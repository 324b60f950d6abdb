"""Differentiable keep-masks: their sums, their guarantees, their gradients, and what the hard part of them is."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.nn import relax as room
from rcp.nn.pruner import Scores
from rcp.types import Role
from tests.nn.pruning import FORCED, GRANULARITIES, LENGTH, SEGMENTS, prune, random_scores
from tests.tiny import Prompt, batch_of


@partial(jax.jit, static_argnames=("granularity", "method"))
def relax(scores, batch, budget, temperature, granularity, method, keys=None):
    return room.relax(scores, batch, budget, granularity=granularity, temperature=temperature, method=method, keys=keys)


@pytest.mark.parametrize(
    ("granularity", "method"),
    [("token", "threshold"), ("token", "successive"), ("segment", "threshold"), ("two_stage", "threshold")],
)
def test_relaxed_masks_sum_to_the_budget(granularity, method):
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    scores, keys = random_scores(1, batch), jax.random.split(jax.random.key(1), 2)
    budget = np.asarray([3, 5], np.int32)
    soft = np.asarray(relax(scores, batch, budget, 0.7, granularity, method, keys))
    context = batch.role == Role.CONTEXT
    assert (soft[(batch.role != Role.PAD) & ~context] == 1).all()
    assert (soft[batch.role == Role.PAD] == 0).all()
    assert (soft[batch.forced] == 1).all()
    assert (soft >= 0).all()
    if granularity != "segment":
        np.testing.assert_allclose((soft * context).sum(1), budget, rtol=1e-5)
        return
    drawn = prune(scores, batch, budget, granularity, keys).drawn
    for row, prompt in enumerate(FORCED):  # one value a segment, and their sum is how many the hard draw looks at
        values = [soft[row][(batch.segment[row] == s) & ~batch.forced[row]] for s in range(len(prompt.segments))]
        assert all(np.ptp(value) == 0 for value in values)
        np.testing.assert_allclose(sum(value[0] for value in values), drawn[row], rtol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_straight_through_has_the_value_of_the_draw_and_the_gradient_of_the_relaxation(granularity):
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    scores, keys = jax.tree.map(jnp.asarray, random_scores(2, batch)), jax.random.split(jax.random.key(2), 2)
    budget = np.asarray([3, 5], np.int32)
    value = jnp.asarray(np.random.default_rng(0).normal(size=batch.role.shape), jnp.float32)
    hard = relax(scores, batch, budget, 0.7, granularity, "straight_through", keys)
    drawn = prune(scores, batch, budget, granularity, keys)
    np.testing.assert_array_equal(hard, np.asarray(drawn.keep, np.float32))

    @partial(jax.jit, static_argnames="method")
    def slope(scores, method):
        return jax.grad(lambda s: jnp.sum(value * relax(s, batch, budget, 0.7, granularity, method, keys)))(scores)

    found, expected = slope(scores, "straight_through"), slope(scores, "threshold")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    assert any(np.any(x) for x in found)
    assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize("granularity", ["token", "segment"])
def test_sigmoid_gates_each_unit_by_itself(granularity):
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    scores = jax.tree.map(jnp.asarray, random_scores(3, batch))
    soft = np.asarray(relax(scores, batch, np.asarray([3, 5], np.int32), 0.5, granularity, "sigmoid"))
    by_segment = np.take_along_axis(np.asarray(scores.segments), np.maximum(batch.segment, 0), axis=1)
    logits = by_segment if granularity == "segment" else np.asarray(scores.tokens)
    free = (batch.role == Role.CONTEXT) & ~batch.forced
    np.testing.assert_allclose(soft[free], (1 / (1 + np.exp(-logits / 0.5)))[free], rtol=1e-5)
    assert (soft[~free & (batch.role != Role.PAD)] == 1).all()
    budget = np.asarray([3, 5], np.int32)
    slope = jax.jit(jax.grad(lambda s: jnp.sum(relax(s, batch, budget, 0.5, granularity, "sigmoid"))))(scores)
    assert all(np.isfinite(x).all() for x in slope)


def test_the_hard_part_of_two_stages_honours_the_first_stage():
    """The best tokens stand in a segment that the first stage leaves out: a draw of tokens alone would take them."""
    batch = batch_of((Prompt((3, 2, 3)),), LENGTH, SEGMENTS)
    tokens = np.where(batch.segment == 0, 9, 0).astype(np.float32)
    scores = Scores(tokens, np.asarray([[-9, 9, 5, 0, 0]], np.float32))
    hard = relax(scores, batch, np.asarray([2], np.int32), 0.5, "two_stage", "straight_through")
    assert hard[batch.segment == 0].tolist() == [0, 0, 0]
    assert hard[batch.segment > 0].sum() == 2


@pytest.mark.strict_dtype
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("method", ["threshold", "successive", "straight_through", "sigmoid"])
def test_dtypes_are_strict(granularity, method):
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    scores, keys = random_scores(2, batch), jax.random.split(jax.random.key(2), 2)
    options = {"granularity": granularity, "temperature": 0.5, "method": method, "keys": keys}
    soft = jax.eval_shape(partial(room.relax, **options), scores, batch, np.asarray([3, 5], np.int32))
    assert (soft.dtype, soft.shape) == (jnp.float32, batch.role.shape)
