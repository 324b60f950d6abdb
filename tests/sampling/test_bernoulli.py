"""Independent keep decisions, also given that one is kept: against enumeration of all sets."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rcp import sampling

from . import enumeration as exact

THETA = np.array([-1.5, 0.4, -0.3, 2.0])
MASKS = np.array(list(itertools.product([False, True], repeat=4)))
DRAWS = 20_000
both = pytest.mark.parametrize("at_least_one", [False, True])


def probabilities(theta: np.ndarray, at_least_one: bool) -> np.ndarray:
    """Of every set in `MASKS`, in float64."""
    p = 1 / (1 + np.exp(-np.asarray(theta, np.float64)))
    each = np.where(MASKS, p, 1 - p).prod(-1)
    if at_least_one:
        each = np.where(MASKS.any(-1), each, 0.0)
    return each / each.sum()


def rows(theta: np.ndarray, count: int = len(MASKS)) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(theta, jnp.float32), (count, len(theta)))


@both
@pytest.mark.parametrize("shift", [0.0, -4.0, 3.0])
def test_log_prob_and_entropy_equal_enumeration_and_sum_to_one(at_least_one, shift):
    expected = probabilities(THETA + shift, at_least_one)
    got = np.exp(
        sampling.bernoulli_log_prob(rows(THETA + shift), jnp.asarray(MASKS), at_least_one=at_least_one), dtype=float
    )
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    assert got.sum() == pytest.approx(1, abs=1e-5)
    entropy = -np.sum(expected[expected > 0] * np.log(expected[expected > 0]))
    found = sampling.bernoulli_entropy(rows(THETA + shift)[0], at_least_one=at_least_one)
    assert float(found) == pytest.approx(entropy, abs=2e-5)


@both
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_sets_occur_as_often_as_enumeration_says(at_least_one, shift):
    """At a shift of -3 no token is kept in four of five draws, so that conditioning matters."""
    logits = rows(THETA + shift, DRAWS)
    subset = jax.jit(sampling.bernoulli, static_argnames="at_least_one")(
        jax.random.key(0), logits, at_least_one=at_least_one
    )
    exact.assert_frequencies(exact.counts(np.asarray(subset.mask), MASKS), probabilities(THETA + shift, at_least_one))
    again = sampling.bernoulli_log_prob(logits, subset.mask, at_least_one=at_least_one)
    np.testing.assert_allclose(subset.log_prob, again, atol=1e-6)
    np.testing.assert_array_equal(subset.mask, subset.rank < subset.mask.sum(-1, keepdims=True))
    np.testing.assert_array_equal(np.sort(subset.rank, -1)[:5], np.tile(np.arange(4), (5, 1)))


@both
def test_the_score_function_gives_the_gradient_of_the_expected_reward(at_least_one):
    """And without the correction for drawing again it does not."""
    theta, reward = THETA - 2.0, np.random.default_rng(1).normal(size=len(MASKS))
    p = probabilities(theta, at_least_one)
    truth = exact.gradient(lambda t: probabilities(t, at_least_one) @ reward, theta)

    def estimate(conditional: bool) -> np.ndarray:
        def total(x):
            value = sampling.bernoulli_log_prob(x, jnp.asarray(MASKS), at_least_one=conditional)
            return jnp.sum(jnp.where(jnp.isfinite(value), value, 0.0))

        return (p * reward) @ np.asarray(jax.grad(total)(rows(theta)), np.float64)

    np.testing.assert_allclose(estimate(at_least_one), truth, atol=2e-5)
    if at_least_one:
        assert np.abs(estimate(False) - truth).max() > 0.05


@both
def test_gradients(at_least_one):
    mask = jnp.asarray(MASKS).at[0, 0].set(True)

    def value(x):
        log_p = sampling.bernoulli_log_prob(x, mask, at_least_one=at_least_one)
        return log_p, sampling.bernoulli_entropy(x, at_least_one=at_least_one)

    check_grads(jax.jit(value), (rows(THETA),), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


@both
def test_the_mode_is_the_likeliest_set(at_least_one):
    for theta in (THETA, THETA - 3.0, -np.arange(1.0, 5.0), np.full(4, 2.0)):
        found = sampling.bernoulli_mode(jnp.asarray(theta, jnp.float32), at_least_one=at_least_one)
        p = probabilities(theta, at_least_one)
        np.testing.assert_array_equal(found.mask, MASKS[p.argmax()])
        assert float(found.log_prob) == pytest.approx(np.log(p.max()), abs=1e-5)


def test_where_every_probability_underflows_the_condition_leaves_a_softmax():
    theta = np.array([-200.0, -201.0, -230.0, -200.5])
    single, expected = jnp.tile(jnp.eye(4, dtype=bool), (4, 1)), np.exp(theta + 200) / np.exp(theta + 200).sum()

    def total(x):
        value = sampling.bernoulli_log_prob(x, single, at_least_one=True)
        return jnp.sum(value), value

    slope, value = jax.grad(total, has_aux=True)(rows(theta))
    np.testing.assert_allclose(np.exp(value[:4]), expected, rtol=1e-4)
    np.testing.assert_allclose(slope[:4], np.eye(4) - expected, atol=1e-5)
    drawn = sampling.bernoulli(jax.random.key(0), rows(theta, DRAWS), at_least_one=True).mask
    assert (drawn.sum(-1) == 1).all()
    exact.assert_frequencies(np.asarray(drawn.sum(0)), expected)
    assert np.isfinite(sampling.bernoulli_entropy(rows(theta), at_least_one=True)).all()


@both
def test_guarantees_come_before_the_draw(at_least_one):
    """Forced and excluded tokens; a forced one does not count as the one that is kept; nothing ordinary at all."""
    inf = np.inf
    logits = jnp.asarray([[inf, -9.0, -9.0, -inf]] * 15 + [[inf, -inf, -inf, 1.0]], jnp.float32)
    valid = jnp.ones((16, 4), bool).at[15, 3].set(False)
    found = sampling.bernoulli(jax.random.key(2), logits, valid=valid, at_least_one=at_least_one)
    assert found.mask[:, 0].all() and not found.mask[:, 3].any()
    assert bool(found.mask[:15, 1:3].any(-1).all()) == at_least_one
    np.testing.assert_array_equal(found.mask[15], [True, False, False, False])
    assert float(found.log_prob[15]) == 0
    masks = np.tile([[False, True, False, False], [True, True, False, True], [True, False, False, False]], (6, 1))[:16]
    value = np.asarray(sampling.bernoulli_log_prob(logits, jnp.asarray(masks), at_least_one=at_least_one))
    assert np.isneginf(value[:2]).all() and np.isneginf(value[2]) == at_least_one
    mode = sampling.bernoulli_mode(logits, at_least_one=at_least_one)
    np.testing.assert_array_equal(mode.mask[0], [True, at_least_one, False, False])
    with pytest.raises(ValueError, match="mask must have the shape"):
        sampling.bernoulli_log_prob(logits, jnp.asarray(masks[:3]))


@both
def test_large_logits_keep_everything_and_stay_finite(at_least_one):
    def log_prob(x):
        found = sampling.bernoulli(jax.random.key(0), x, at_least_one=at_least_one)
        return jnp.sum(found.log_prob), found.mask

    (value, mask), slope = jax.value_and_grad(log_prob, has_aux=True)(rows(np.array([1e30, 1e29, 50.0, 40.0])))
    assert mask.all() and float(value) == pytest.approx(0, abs=1e-5)
    assert np.isfinite(slope).all()
