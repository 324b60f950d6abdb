"""Supervised objectives, budget, rewards, and how values become one loss."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp import config
from rcp.objectives import OBJECTIVES, Labels, Objective, Outcome, Settings, combine, global_mean
from rcp.objectives.budget import budget
from rcp.objectives.rewards import RewardWeights, reward
from rcp.objectives.supervised import bce, kl, nll
from rcp.types import Role
from tests.tiny import Prompt, batch_of

ROWS = (Prompt((2, 3, 1)), Prompt((1, 3, 2, 3), instruction=0))
BATCH = batch_of(ROWS, 16, 4)
LABELS = np.asarray([[1.0, 0.0, 0.3, -1.0], [-1.0, 1.0, 0.0, -1.0]], np.float32)


def outcome(**fields) -> Outcome:
    rng = np.random.default_rng(0)
    tokens, segments = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 16), (2, 4)))
    empty = dict.fromkeys(("labels", "keep", "nll", "kl", "draws", "multiplier"))
    given = {"batch": BATCH, "token_scores": tokens, "segment_scores": segments, "asked": jnp.asarray([3, 9])}
    return Outcome(**(empty | given | fields))


def cross_entropy(logit: float, label: float) -> float:
    p = 1 / (1 + np.exp(-logit))
    return -label * np.log(p) - (1 - label) * np.log(1 - p)


@pytest.mark.strict_dtype
@pytest.mark.parametrize("granularity", ["segment", "token", "two_stage"])
def test_cross_entropy_counts_what_has_a_label(granularity):
    found = outcome(labels=Labels(np.asarray(LABELS)))
    expected = np.zeros(2)
    for row in range(2):
        known = [s for s in range(4) if LABELS[row, s] >= 0]
        if granularity != "token":
            expected[row] += sum(cross_entropy(found.segment_scores[row, s], LABELS[row, s]) for s in known)
        if granularity != "segment":
            places = [t for t in range(16) if int(BATCH.segment[row, t]) in known]
            losses = [cross_entropy(found.token_scores[row, t], LABELS[row, BATCH.segment[row, t]]) for t in places]
            expected[row] += np.mean(losses) * len(known)
    settings = Settings(granularity=granularity)

    def total(scores):
        values = bce(found._replace(token_scores=scores[0], segment_scores=scores[1]), settings)
        return jnp.sum(values), values

    (tokens, segments), values = jax.jit(jax.grad(total, has_aux=True))((found.token_scores, found.segment_scores))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert not np.any(np.asarray(segments)[LABELS < 0])
    assert np.any(segments) == (granularity != "token")
    assert not np.any(np.asarray(tokens)[BATCH.role != Role.CONTEXT])
    assert np.any(tokens) == (granularity != "segment")


def test_labels_of_tokens_count_where_their_segments_have_none():
    """Of a single segment, say; as many times as there are segments."""
    labels = np.where(BATCH.role == Role.CONTEXT, 0.25, -1.0).astype(np.float32)
    found = outcome(labels=Labels(jnp.full((2, 4), -1.0), jnp.asarray(labels)))
    values = jax.jit(lambda found: bce(found, Settings(granularity="token")))(found)
    for row, segments in enumerate((3, 4)):
        losses = [cross_entropy(logit, 0.25) for logit in found.token_scores[row][BATCH.role[row] == Role.CONTEXT]]
        np.testing.assert_allclose(values[row], segments * np.mean(losses), rtol=1e-5)


def test_examples_without_any_label_cost_nothing():
    for granularity in ("segment", "token", "two_stage"):
        settings = Settings(granularity=granularity)
        found = outcome(labels=Labels(jnp.full((2, 4), -1.0)))
        np.testing.assert_array_equal(jax.jit(lambda found, settings=settings: bce(found, settings))(found), 0)


def test_the_answer_terms_are_handed_through():
    values = jnp.asarray([1.0, 2.0])
    np.testing.assert_array_equal(nll(outcome(nll=values), Settings()), values)
    np.testing.assert_array_equal(kl(outcome(kl=values), Settings()), values)


@pytest.mark.strict_dtype
def test_the_budget_term_descends_in_the_mask_and_ascends_in_the_multiplier():
    keep = jnp.where(BATCH.role == Role.CONTEXT, 0.75, 1.0)  # 6 and 9 context tokens; 3 and 9 asked for
    found = outcome(keep=keep, multiplier=jnp.asarray(2.0))
    violation = np.asarray([0.75 - 3 / 6, 0.75 - 9 / 9])

    def total(keep, multiplier):
        return budget(found._replace(keep=keep, multiplier=multiplier), Settings())

    np.testing.assert_allclose(total(keep, jnp.asarray(2.0)), 0, atol=1e-6)  # the two halves cancel in value
    to_keep = jax.grad(lambda k: jnp.sum(total(k, jnp.asarray(2.0))))(keep)
    count = np.asarray([6.0, 9.0])[:, None]
    np.testing.assert_allclose(to_keep, np.where(BATCH.role == Role.CONTEXT, 2 / count, 0), rtol=1e-5)
    to_multiplier = jax.jacobian(lambda m: total(keep, m))(jnp.asarray(2.0))
    np.testing.assert_allclose(to_multiplier, -violation, rtol=1e-5)  # a descent step raises it where over budget


@pytest.mark.strict_dtype
def test_the_reward_adds_its_parts():
    nll_, exact = jnp.asarray([0.0, 1.0, jnp.inf]), jnp.asarray([True, False, False])
    kept, context = jnp.asarray([5, 8, 0], jnp.int32), jnp.asarray([10, 8, 0], jnp.int32)
    found = reward(nll_, exact, kept, context, RewardWeights(2.0, 3.0, 4.0))
    np.testing.assert_allclose(found, [2 + 3 - 2, 1.5 - 4, 0])


@pytest.mark.strict_dtype
def test_the_reward_of_cot_influx_is_greatest_where_the_window_is_just_full():
    """(1 / (1 + L) + R) * (t / T)^w by hand, on both sides of T = 200, at it, and where nothing is kept."""
    used = jnp.asarray([0, 50, 200, 400, 800], jnp.int32)
    exact = jnp.asarray([True, False, True, True, False])
    weights = RewardWeights(exact_match=0.5, length=9.0, kind="cot_influx", window=200)
    found = reward(jnp.full(5, 3.0), exact, used, jnp.full(5, 1000, jnp.int32), weights)
    np.testing.assert_allclose(found, [0.75 * 0, 0.25 * 50 / 200, 0.75, 0.75 * 200 / 400, 0.25 * 200 / 800], rtol=1e-6)


def test_filler_rows_do_not_count_and_shares_add_up():
    values, weight = jnp.asarray([1.0, 5.0, jnp.nan, 3.0]), jnp.asarray([1.0, 1.0, 0.0, 1.0])
    assert global_mean(values, weight, None) == 3
    assert global_mean(values, jnp.zeros(4), None) == 0
    shares = jax.vmap(lambda v, w: global_mean(v, w, "data"), axis_name="data")(
        values.reshape(2, 2), weight.reshape(2, 2)
    )
    np.testing.assert_allclose(shares, [2, 1])  # uneven weights: shares of the global mean, not local means
    np.testing.assert_allclose(shares.sum(), 3)


def test_a_nan_in_a_filler_row_does_not_reach_the_gradient():
    values, weight = jnp.asarray([1.0, jnp.nan, 3.0]), jnp.asarray([1.0, 0.0, 1.0])
    to_values, to_weight = jax.grad(lambda v, w: global_mean(v, w, None), argnums=(0, 1))(values, weight)
    np.testing.assert_allclose(to_values, [0.5, 0, 0.5])
    assert np.all(np.isfinite(to_weight))


def test_the_loss_is_the_weighted_sum_and_each_term_is_reported_bare():
    objectives = {
        "a": Objective(lambda outcome, settings: jnp.asarray([1.0, 3.0]), frozenset()),
        "b": Objective(lambda outcome, settings: outcome.nll, frozenset()),
    }
    weights = {"a": jnp.asarray(0.5), "b": jnp.asarray(-2.0)}
    loss, terms = combine(objectives, weights, outcome(nll=jnp.asarray([4.0, 6.0])), Settings(), None)
    assert {name: float(x) for name, x in terms.items()} == {"a": 2, "b": 5}
    assert loss == 0.5 * 2 - 2 * 5


def test_the_names_are_those_of_the_config():
    assert set(OBJECTIVES) == set(config.OBJECTIVES)
    known = {"labels", "relaxed", "full", "draws", "multiplier"}
    assert all(objective.needs <= known for objective in OBJECTIVES.values())
    section = dataclasses.asdict(config.RewardConfig())
    assert section.pop("reader") == "model" and section.pop("endpoint")  # who answers, not what it earns
    assert dataclasses.asdict(RewardWeights()) == section
