"""The conditional Bernoulli against enumeration: marginals, covariance, sampler, log-probability, entropy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rcp import sampling

from . import enumeration as exact

THETA = np.array([0.0, 1.0, 2.0, -0.5, 0.3, 0.0])
DRAWS = 20_000


@pytest.mark.parametrize("theta", [THETA, THETA * 20, np.zeros(6)], ids=["mild", "steep", "equal"])
def test_marginals_log_prob_and_entropy_equal_enumeration(theta):
    theta = np.asarray(theta, np.float32)
    sizes = jnp.arange(8, dtype=jnp.int32)  # 7 of 6 keeps all
    rows = jnp.broadcast_to(jnp.asarray(theta), (8, 6))
    marginals = sampling.marginals(rows, sizes)
    entropies = sampling.conditional_bernoulli_entropy(rows, sizes)
    masks = np.concatenate([exact.subsets(6, k) for k in range(7)])
    logits = jnp.broadcast_to(jnp.asarray(theta), masks.shape)
    log_p = np.asarray(sampling.conditional_bernoulli_log_prob(logits, jnp.asarray(masks)))
    for k in range(8):
        p = exact.conditional_bernoulli_sets(theta, min(k, 6))
        np.testing.assert_allclose(marginals[k], p @ exact.subsets(6, min(k, 6)), atol=3e-6)
        truth = -(p[p > 0] * np.log(p[p > 0])).sum()
        assert float(entropies[k]) == pytest.approx(truth, abs=1e-4)
        got = log_p[masks.sum(-1) == min(k, 6)]
        np.testing.assert_allclose(got, np.log(p), atol=1e-4, rtol=1e-6)
        assert np.exp(got).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "theta",
    [
        THETA + 1e6,
        np.array([-1e9, *THETA[1:]]),
        np.array([*THETA[:3], np.finfo(np.float32).min, *THETA[4:]]),
        np.array([np.finfo(np.float32).min, *THETA[1:]]),
    ],
    ids=["offset", "low first", "lowest", "lowest first"],
)
def test_extreme_logits_cost_no_digits(theta):
    """All of them, and one that is as good as excluded, wherever it stands."""
    logits = jnp.asarray(theta, jnp.float32)
    theta = np.asarray(logits, np.float64)
    masks, p = exact.subsets(6, 3), exact.conditional_bernoulli_sets(np.maximum(theta, theta.max() - 200), 3)
    np.testing.assert_allclose(sampling.marginals(logits, 3), p @ masks, atol=1e-5)
    log_p = sampling.conditional_bernoulli_log_prob(jnp.broadcast_to(logits, masks.shape), jnp.asarray(masks))
    np.testing.assert_allclose(np.exp(log_p), p, atol=1e-5)
    rows = jnp.broadcast_to(logits, (DRAWS, 6))
    drawn = np.asarray(sampling.conditional_bernoulli(jax.random.key(0), rows, 3).mask)
    np.testing.assert_allclose(drawn.mean(axis=0), p @ masks, atol=0.02)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_sets_occur_as_often_as_enumeration_says(k):
    logits = jnp.broadcast_to(jnp.asarray(THETA, jnp.float32), (DRAWS, 6))
    subset = jax.jit(sampling.conditional_bernoulli)(jax.random.key(k), logits, k)
    observed = exact.counts(np.asarray(subset.mask), exact.subsets(6, k))
    exact.assert_frequencies(observed, exact.conditional_bernoulli_sets(THETA, k))
    np.testing.assert_allclose(subset.log_prob, sampling.conditional_bernoulli_log_prob(logits, subset.mask), atol=1e-6)
    np.testing.assert_array_equal(subset.mask, subset.rank < k)
    np.testing.assert_array_equal(np.sort(subset.rank, -1)[0], np.arange(6))


@pytest.mark.parametrize("theta", [THETA, np.zeros(6)], ids=["mild", "equal"])
def test_jacobian_of_the_marginals_is_the_covariance(theta):
    masks, p = exact.subsets(6, 3).astype(float), exact.conditional_bernoulli_sets(theta, 3)
    mean = p @ masks
    covariance = (masks - mean).T @ (p[:, None] * (masks - mean))
    got = jax.jacrev(lambda x: sampling.marginals(x, 3))(jnp.asarray(theta, jnp.float32))
    np.testing.assert_allclose(got, covariance, atol=3e-6)


def test_gradients():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.float32)
    mask = sampling.conditional_bernoulli(jax.random.key(0), logits, 3).mask

    @jax.jit
    def all_three(x):
        log_p = sampling.conditional_bernoulli_log_prob(x, mask)
        return sampling.marginals(x, 3), log_p, sampling.conditional_bernoulli_entropy(x, 3)

    check_grads(all_three, (logits,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


def test_score_function_estimates_the_enumerated_gradient():
    k, reward = 3, np.random.default_rng(3).normal(size=20)
    masks = exact.subsets(6, k)
    truth = exact.gradient(lambda t: exact.conditional_bernoulli_sets(t, k) @ reward, THETA)
    logits = jnp.broadcast_to(jnp.asarray(THETA, jnp.float32), (DRAWS, 6))

    def log_p(x):
        subset = sampling.conditional_bernoulli(jax.random.key(1), x, k)
        return subset.log_prob.sum(), subset.mask

    score, drawn = jax.grad(log_p, has_aux=True)(logits)
    value = reward[[np.flatnonzero((masks == m).all(-1))[0] for m in np.asarray(drawn)]]
    terms = np.asarray(score) * (value - value.mean())[:, None]
    assert np.all(np.abs(terms.mean(0) - truth) < 4 * terms.std(0) / np.sqrt(DRAWS))


def _marginals_float64(logits: np.ndarray, k: int) -> np.ndarray:
    """Prefix and suffix log elementary symmetric polynomials in float64."""

    def prefixes(phi):
        table = [np.r_[0.0, np.full(k, -np.inf)]]
        for x in phi:
            table.append(np.logaddexp(table[-1], np.r_[-np.inf, x + table[-1][:-1]]))
        return table

    before, after = prefixes(logits), prefixes(logits[::-1])[::-1]
    total = np.logaddexp.reduce(before[-1][k:])
    with np.errstate(invalid="ignore"):
        return np.array(
            [
                np.exp(x + np.logaddexp.reduce(before[i][:k] + after[i + 1][:k][::-1]) - total)
                for i, x in enumerate(logits)
            ]
        )


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_thousand_tokens_keep_their_digits_in_float32(scale):
    logits = (np.random.default_rng(0).normal(size=1024) * scale).astype(np.float32)
    got = np.asarray(sampling.marginals(jnp.asarray(logits), 256))
    assert got.sum() == pytest.approx(256, rel=1e-5)
    np.testing.assert_allclose(got, _marginals_float64(logits.astype(np.float64), 256), atol=1e-4)


def test_traced_k_infinities_and_batch_shapes():
    inf = np.inf
    logits = jnp.asarray(
        [[[inf, 0, 1, -inf, 2, 0.5], [inf, inf, inf, 0, 0, 0]], [[-inf] * 6, [0, 1, 2, 3, 4, 5]]], jnp.float32
    )
    valid = jnp.ones((2, 2, 6), bool).at[1, 1, 4].set(False)
    k = jnp.asarray([[3, 2], [2, 9]], jnp.int32)

    traces = []

    @jax.jit
    def run(x, k):
        traces.append(None)

        def total(x):
            subset = sampling.conditional_bernoulli(jax.random.key(0), x, k, valid=valid)
            probability = sampling.marginals(x, k, valid=valid)
            entropy = sampling.conditional_bernoulli_entropy(x, k, valid=valid)
            return jnp.sum(jnp.square(probability)) + jnp.sum(subset.log_prob + entropy), (subset, probability)

        return jax.value_and_grad(total, has_aux=True)(x)

    (value, (subset, probability)), slope = run(logits, k)
    np.testing.assert_array_equal(subset.mask.sum(-1), [[3, 2], [0, 5]])
    np.testing.assert_allclose(probability.sum(-1), [[3, 2], [0, 5]], rtol=1e-6)
    np.testing.assert_array_equal(probability[0, 1], [1, 1, 0, 0, 0, 0])
    assert subset.mask[0, 0, 0] and not subset.mask[0, 0, 3] and not subset.mask[1, 1, 4]
    assert np.isfinite(value) and np.isfinite(slope).all()
    run(logits, k - 1)
    assert len(traces) == 1


def test_bound_for_a_traced_k():
    logits = jnp.asarray(THETA, jnp.bfloat16)
    rows = jnp.broadcast_to(logits, (2, 6))
    got = sampling.marginals(rows, jnp.asarray([3, 5], jnp.int32), max_k=4)
    np.testing.assert_allclose(got[0], sampling.marginals(logits, 3), atol=1e-6)
    assert np.isnan(got[1]).all()


def test_sets_that_cannot_be_drawn():
    logits = jnp.asarray([[np.inf, 0.0, 1.0], [-np.inf, 0.0, 1.0]], jnp.float32)
    mask = jnp.asarray([[False, True, True], [True, True, False]])
    assert np.isneginf(sampling.conditional_bernoulli_log_prob(logits, mask)).all()
