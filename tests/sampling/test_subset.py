"""The unordered set's log-probability by quadrature, and the leave-one-out mean, against enumeration."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rcp import sampling

from . import enumeration as exact


@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0])
def test_set_log_prob_equals_enumeration_and_sums_to_one(scale):
    theta = (np.random.default_rng(6).normal(size=6) * scale).astype(np.float32)
    masks = np.concatenate([exact.subsets(6, k) for k in range(7)])
    log_p = np.asarray(sampling.set_log_prob(jnp.broadcast_to(jnp.asarray(theta), masks.shape), jnp.asarray(masks)))
    for k in range(7):
        got = log_p[masks.sum(-1) == k]
        np.testing.assert_allclose(got, np.log(exact.plackett_luce_sets(theta, k)), atol=2e-5, rtol=2e-6)
        assert np.exp(got).sum() == pytest.approx(1, abs=1e-5)


def test_set_log_prob_of_one_token_is_log_softmax_at_any_range():
    logits = jnp.asarray([0.0, 90.0, -200.0, 3.0], jnp.float32)
    got = sampling.set_log_prob(jnp.broadcast_to(logits, (4, 4)), jnp.eye(4, dtype=bool))
    np.testing.assert_allclose(got, jax.nn.log_softmax(logits), rtol=1e-5, atol=1e-5)


def _reference(logits: np.ndarray, mask: np.ndarray) -> float:
    """The same integral on a grid of 20,000 nodes in float64."""
    rest = np.logaddexp.reduce(logits[~mask])
    y = np.linspace(-25, 12, 20_000)
    log_f = y - np.exp(y)
    for ratio in logits[mask] - rest:
        with np.errstate(divide="ignore"):
            log_f = log_f + np.log(-np.expm1(-np.exp(y + ratio)))
    return float(np.logaddexp.reduce(log_f) + np.log(y[1] - y[0]))


@pytest.mark.parametrize(("n", "k", "scale"), [(512, 128, 1.0), (512, 500, 3.0), (512, 3, 10.0), (512, 64, 0.1)])
def test_set_log_prob_of_many_tokens_equals_a_fine_grid(n, k, scale):
    logits = np.random.default_rng(0).normal(size=n).astype(np.float32) * np.float32(scale)
    for mask in (np.asarray(sampling.top_k(jnp.asarray(logits), k).mask), np.arange(n) < k):
        got = sampling.set_log_prob(jnp.asarray(logits), jnp.asarray(mask))
        assert float(got) == pytest.approx(_reference(logits.astype(np.float64), mask), rel=1e-5, abs=1e-4)


def test_set_log_prob_gradients():
    theta = np.random.default_rng(0).normal(size=5)
    masks = np.concatenate([exact.subsets(5, k) for k in range(1, 5)])
    logits = jnp.broadcast_to(jnp.asarray(theta, jnp.float32), masks.shape)
    got = jax.grad(lambda x: sampling.set_log_prob(x, jnp.asarray(masks)).sum())(logits)
    truth = [exact.gradient(lambda t, k=k: np.log(exact.plackett_luce_sets(t, k)), theta) for k in range(1, 5)]
    np.testing.assert_allclose(got, np.concatenate(truth), atol=2e-5)
    set_log_prob = jax.jit(lambda x: sampling.set_log_prob(x, jnp.asarray(masks)))
    check_grads(set_log_prob, (logits,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_set_log_prob_of_forced_and_excluded_tokens():
    inf = np.inf
    logits = jnp.asarray([[inf, 0, 1, 2]] * 3 + [[-inf, 0, 1, 2]] * 2 + [[inf, inf, 0, 0]], jnp.float32)
    mask = jnp.asarray([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]], bool)
    got, slope = jax.value_and_grad(lambda x: jnp.sum(jnp.maximum(sampling.set_log_prob(x, mask), -1e3)))(logits)
    values = np.asarray(sampling.set_log_prob(logits, mask))
    one_of_three = np.log(1 / (1 + np.exp(1) + np.exp(2)))
    np.testing.assert_allclose(values, [one_of_three, -inf, 0, -inf, one_of_three, 0], atol=1e-5)
    assert np.isfinite(got) and np.isfinite(slope).all()
    hidden = sampling.set_log_prob(
        jnp.asarray([5.0, 0.0, 1.0, 2.0]), mask[4], valid=jnp.asarray([False, True, True, True])
    )
    assert float(hidden) == pytest.approx(one_of_three, abs=1e-5)


def test_long_context_set_log_prob_is_finite():
    logits = (jax.random.normal(jax.random.key(0), (32_768,)) * 5).astype(jnp.bfloat16)
    mask = sampling.gumbel_top_k(jax.random.key(1), logits, 512).mask
    value, slope = jax.value_and_grad(sampling.set_log_prob)(logits, mask)
    assert np.isfinite(value) and value < 0
    assert np.isfinite(np.asarray(slope, np.float32)).all()


def _expected_gradient(baseline) -> np.ndarray:
    """Mean over all 6^3 triples of independent draws of the REINFORCE estimate with a baseline, by enumeration."""
    theta, reward = np.array([0.0, 1.0, 2.0, -0.5]), np.array([1.0, -2.0, 0.5, 3.0, 0.0, 1.5])
    p = exact.plackett_luce_sets(theta, 2)
    scores = exact.gradient(lambda t: np.log(exact.plackett_luce_sets(t, 2)), theta)  # [sets, tokens]
    triples = np.asarray(list(itertools.product(range(6), repeat=3)))
    values = reward[triples]
    advantages = values - baseline(values)
    per_triple = (advantages[..., None] * scores[triples]).mean(1)
    truth = exact.gradient(lambda t: exact.plackett_luce_sets(t, 2) @ reward, theta)
    return (p[triples].prod(-1)[:, None] * per_triple).sum(0) - truth


def test_leave_one_out_baseline_is_unbiased_and_the_reversed_index_is_not():
    """The second trap found in public code: `values[~i]` reverses the index instead of excluding i."""
    bias = _expected_gradient(lambda values: np.asarray(sampling.leave_one_out(jnp.asarray(values, jnp.float32))))
    np.testing.assert_allclose(bias, 0, atol=1e-5)
    reversed_index = _expected_gradient(lambda values: np.stack([values[:, ~i] for i in range(3)], -1))
    assert np.abs(reversed_index).max() > 0.05


def test_leave_one_out_is_the_mean_of_the_others_along_any_axis():
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    others = np.stack([np.delete(values, i, 0).mean(0) for i in range(5)])
    np.testing.assert_allclose(sampling.leave_one_out(jnp.asarray(values), axis=0), others, atol=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        sampling.leave_one_out(jnp.zeros((4, 1)))
