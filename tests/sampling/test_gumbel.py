"""Plackett-Luce sampling against enumeration, and what every sampler promises about k, ties and infinities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy import stats

from rcp import sampling

from . import enumeration as exact

THETA = np.array([0.0, 1.0, 2.0, -0.5, 0.3])
DRAWS = 20_000


def draw(theta: np.ndarray, k: int, seed: int = 0) -> sampling.Subset:
    logits = jnp.broadcast_to(jnp.asarray(theta, jnp.float32), (DRAWS, len(theta)))
    return jax.jit(sampling.gumbel_top_k)(jax.random.key(seed), logits, k)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_sets_occur_as_often_as_enumeration_says(k):
    observed = exact.counts(np.asarray(draw(THETA, k).mask), exact.subsets(5, k))
    exact.assert_frequencies(observed, exact.plackett_luce_sets(THETA, k))


def test_sets_of_eight_tokens_occur_as_often_as_enumeration_says():
    theta = np.linspace(-1.5, 1.5, 8)
    observed = exact.counts(np.asarray(draw(theta, 4).mask), exact.subsets(8, 4))
    exact.assert_frequencies(observed, exact.plackett_luce_sets(theta, 4))


def test_orders_occur_as_often_as_enumeration_says():
    ranks = exact.orderings(5, 2)
    drawn = np.minimum(np.asarray(draw(THETA, 2).rank), 2)
    observed = exact.counts(drawn, np.minimum(ranks, 2))
    exact.assert_frequencies(observed, exact.ordered_plackett_luce(THETA, ranks, 2))


def test_noise_is_standard_gumbel_in_the_body_and_in_the_upper_tail():
    noise = np.asarray(sampling.gumbel_noise(jax.random.key(3), (400_000,)))
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > 1e-3
    beyond = noise[noise > 6.0]  # rare events decide which unlikely token is kept
    assert abs(len(beyond) - 400_000 * stats.gumbel_r.sf(6.0)) < 5 * np.sqrt(400_000 * stats.gumbel_r.sf(6.0))
    assert len(np.unique(beyond)) > 0.99 * len(beyond)


def test_log_prob_equals_enumeration_and_sums_to_one():
    sizes = (0, 1, 3, 5)
    ranks = [exact.orderings(5, k) for k in sizes]
    k = np.repeat(sizes, [len(r) for r in ranks]).astype(np.int32)
    logits = jnp.broadcast_to(jnp.asarray(THETA, jnp.float32), (len(k), 5))
    got = np.asarray(sampling.log_prob(logits, jnp.asarray(np.concatenate(ranks)), jnp.asarray(k)))
    for size, rank in zip(sizes, ranks, strict=True):
        truth = np.log(exact.ordered_plackett_luce(THETA, rank, size))
        np.testing.assert_allclose(got[k == size], truth, atol=3e-6)
        assert np.exp(got[k == size]).sum() == pytest.approx(1, abs=1e-5)


def test_a_sampler_returns_the_log_prob_of_what_it_drew():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 40)), jnp.float32)
    k = jnp.asarray([[0, 1, 5], [20, 39, 40]], jnp.int32)
    for subset in (sampling.gumbel_top_k(jax.random.key(1), logits, k), sampling.top_k(logits, k)):
        np.testing.assert_array_equal(subset.log_prob, sampling.log_prob(logits, subset.rank, k))


def test_log_prob_gradients():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)), jnp.float32)
    k = jnp.asarray([1, 3, 6], jnp.int32)
    rank = sampling.gumbel_top_k(jax.random.key(0), logits, k).rank

    def value(x):
        return sampling.log_prob(x, rank, k)

    check_grads(jax.jit(value), (logits,), order=1, modes=["fwd", "rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


def test_log_prob_gradient_equals_that_of_the_formula():
    logits = np.random.default_rng(2).normal(size=50) * 3
    rank = np.asarray(sampling.gumbel_top_k(jax.random.key(0), jnp.asarray(logits, jnp.float32), 20).rank)

    def formula(phi):
        ordered = phi[np.argsort(rank)]
        return sum(ordered[i] - np.log(np.exp(ordered[i:]).sum()) for i in range(20))

    got = jax.grad(lambda x: sampling.log_prob(x, jnp.asarray(rank), 20))(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(got, exact.gradient(formula, logits), atol=2e-5)


@pytest.mark.parametrize("which", ["ordered", "set"])
def test_score_function_estimates_the_enumerated_gradient(which):
    k, reward = 2, np.random.default_rng(3).normal(size=10)
    masks = exact.subsets(5, k)
    truth = exact.gradient(lambda t: exact.plackett_luce_sets(t, k) @ reward, THETA)
    subset = draw(THETA, k, seed=5)
    value = reward[[np.flatnonzero((masks == m).all(-1))[0] for m in np.asarray(subset.mask)]]
    logits = jnp.broadcast_to(jnp.asarray(THETA, jnp.float32), subset.mask.shape)
    if which == "ordered":
        score = jax.grad(lambda x: sampling.log_prob(x, subset.rank, k).sum())(logits)
    else:
        score = jax.grad(lambda x: sampling.set_log_prob(x, subset.mask).sum())(logits)
    terms = np.asarray(score) * (value - value.mean())[:, None]
    error = terms.std(0) / np.sqrt(DRAWS)
    assert np.all(np.abs(terms.mean(0) - truth) < 4 * error)
    assert np.all(error < 0.02)


def test_conditional_bernoulli_numbers_do_not_belong_to_gumbel_draws():
    """A trap found in public code: drawing by Gumbel top-k and using the conditional Bernoulli's probabilities."""
    theta = np.array([0, 1, 2, -0.5])
    plackett_luce, conditional = exact.plackett_luce_sets(theta, 2), exact.conditional_bernoulli_sets(theta, 2)
    assert np.abs(plackett_luce - conditional).sum() / 2 == pytest.approx(0.049, abs=5e-4)
    masks = jnp.asarray(exact.subsets(4, 2))
    logits = jnp.broadcast_to(jnp.asarray(theta, jnp.float32), masks.shape)
    np.testing.assert_allclose(np.exp(sampling.set_log_prob(logits, masks)), plackett_luce, atol=1e-6)
    np.testing.assert_allclose(np.exp(sampling.conditional_bernoulli_log_prob(logits, masks)), conditional, atol=1e-6)
    assert (plackett_luce @ exact.subsets(4, 2))[2] == pytest.approx(0.915, abs=5e-4)
    assert float(sampling.marginals(logits[0], 2)[2]) == pytest.approx(0.865, abs=5e-4)
    drawn = np.asarray(draw(theta, 2).mask).mean(0)
    standard_error = np.sqrt(0.915 * 0.085 / DRAWS)
    assert abs(drawn[2] - 0.915) < 4 * standard_error
    assert abs(drawn[2] - 0.865) > 15 * standard_error


def test_entropy_estimate_is_unbiased_and_exact_for_one_draw():
    logits = jnp.broadcast_to(jnp.asarray(THETA, jnp.float32), (DRAWS, 5))
    for k in (1, 3):
        p = exact.ordered_plackett_luce(THETA, exact.orderings(5, k), k)
        truth = -(p * np.log(p)).sum()
        got = np.asarray(sampling.entropy(logits, draw(THETA, k).rank, k))
        assert abs(got.mean() - truth) < 4 * got.std() / np.sqrt(DRAWS) + 1e-5
    rank = jnp.asarray(exact.orderings(5, 3)[:4])
    check_grads(jax.jit(lambda x: sampling.entropy(x, rank, 3)), (logits[:4],), order=1, atol=1e-2, eps=1e-2)


def test_entropy_of_equal_and_of_far_apart_logits():
    rank = jnp.arange(6, dtype=jnp.int32)
    assert float(sampling.entropy(jnp.full((6,), 7.0), rank, 2)) == pytest.approx(np.log(6 * 5), abs=1e-5)
    assert float(sampling.entropy(jnp.arange(6.0)[::-1] * 300, rank, 4)) == pytest.approx(0, abs=1e-4)


def test_infinite_logits_are_kept_first_or_never():
    inf = np.inf
    logits = jnp.asarray(
        [[0, inf, 1, -inf, inf, 2], [inf] * 4 + [1, 2], [-inf] * 6, [0, 1, 2, 3, -inf, inf]], jnp.float32
    )
    valid = jnp.asarray([[True] * 6, [False] + [True] * 5, [True] * 6, [True] * 3 + [False] + [True, False]])
    subset = sampling.gumbel_top_k(jax.random.key(0), logits, jnp.asarray([3, 2, 4, 5], jnp.int32), valid=valid)
    mask = np.asarray(subset.mask)
    np.testing.assert_array_equal(mask.sum(-1), [3, 2, 0, 3])  # fewer than k: all that may be kept
    np.testing.assert_array_equal(mask[1], [False, True, True, False, False, False])  # more +inf than k: the first
    assert mask[0, [1, 4]].all() and not mask[0, 3]
    np.testing.assert_array_equal(mask[3], [True, True, True, False, False, False])
    np.testing.assert_array_equal(np.asarray(subset.log_prob)[1:3], [0, 0])
    slope = jax.grad(lambda x: sampling.entropy(x, subset.rank, subset.mask.sum(-1), valid=valid).sum())(logits)
    assert np.isfinite(slope).all()
    one = sampling.log_prob(jnp.asarray([0.0, 1.0, 2.0]), jnp.asarray([[0, 1, 2]], jnp.int32)[0], 1)
    ordinary = sampling.log_prob(logits[0], jnp.asarray([2, 0, 3, 5, 1, 4], jnp.int32), 3)
    assert float(ordinary) == pytest.approx(float(one))


def test_samples_that_cannot_occur_have_log_prob_minus_infinity_and_no_gradient():
    inf = np.inf
    logits = jnp.asarray([[inf, 0.0, 1.0], [-inf, 0.0, 1.0], [inf, 0.0, 1.0]], jnp.float32)
    rank = jnp.asarray([[1, 0, 2], [0, 1, 2], [0, 1, 2]], jnp.int32)
    value, slope = jax.value_and_grad(lambda x: jnp.max(sampling.log_prob(x, rank, 2)))(logits)
    np.testing.assert_array_equal(np.isneginf(sampling.log_prob(logits, rank, 2)), [True, True, False])
    assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ties_are_exact_and_go_to_the_lower_index(dtype):
    logits = jnp.zeros((3, 100), dtype).at[1].set(-0.0).at[2, 50:].set(1e-3)
    subset = sampling.top_k(logits, 30)
    expected = np.zeros((3, 100), bool)
    expected[:2, :30], expected[2, 50:80] = True, True
    np.testing.assert_array_equal(subset.mask, expected)
    assert subset.log_prob.dtype == jnp.float32 and subset.rank.dtype == jnp.int32


def test_one_compilation_serves_every_k():
    traces = []

    @jax.jit
    def sample(logits, k):
        traces.append(None)
        return sampling.gumbel_top_k(jax.random.key(0), logits, k)

    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17)), jnp.float32)
    for k in range(20):
        mask = sample(logits, jnp.asarray([k, k // 2], jnp.int32)).mask
        np.testing.assert_array_equal(mask.sum(-1), [min(k, 17), min(k // 2, 17)])
    assert len(traces) == 1


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_long_bfloat16_context(scale):
    """n = 32,768 without overflow; value and gradient against float64."""
    n, k = 32_768, 8_192
    logits = (jax.random.normal(jax.random.key(0), (n,)) * scale).astype(jnp.bfloat16)
    rank = sampling.gumbel_top_k(jax.random.key(1), logits, k).rank
    value, slope = jax.value_and_grad(lambda x: sampling.log_prob(x, rank, k))(logits.astype(jnp.float32))
    np.testing.assert_array_equal(np.sort(rank), np.arange(n))
    ordered = np.asarray(logits, np.float64)[np.argsort(rank)]
    left = np.logaddexp.accumulate(ordered[::-1])[::-1]
    truth = (ordered - left)[:k].sum()
    assert float(value) == pytest.approx(truth, rel=2e-6)
    spent = np.logaddexp.accumulate(np.where(np.arange(n) < k, -left, -np.inf))
    score = (np.arange(n) < k) - np.exp(ordered + spent)
    np.testing.assert_allclose(np.asarray(slope)[np.argsort(rank)], score, atol=2e-4 * max(1, scale / 10))


def test_more_tokens_than_the_radix_sort_takes():
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 50, size=70_000), jnp.float32)
    np.testing.assert_array_equal(
        np.argsort(sampling.top_k(logits, 5).rank), np.argsort(-np.asarray(logits), kind="stable")
    )


def test_a_common_offset_and_an_extreme_logit_change_nothing_for_the_others():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)
    rank = sampling.top_k(logits, 20).rank
    plain = float(sampling.log_prob(logits, rank, 20))
    assert float(sampling.log_prob(logits + 4096.0, rank, 20)) == pytest.approx(plain, abs=2e-2)
    lowest = jnp.concatenate([logits, jnp.full((3,), jnp.finfo(jnp.float32).min)])
    longer = jnp.concatenate([rank, jnp.arange(64, 67, dtype=jnp.int32)])
    assert float(sampling.log_prob(lowest, longer, 20)) == pytest.approx(plain, abs=1e-3)
    assert np.isfinite(sampling.log_prob(lowest, longer, 67))


def test_vmap_pmap_and_batch_shapes_agree():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 9)), jnp.float32)
    keys, k = jax.random.split(jax.random.key(0), 8), jnp.arange(16, dtype=jnp.int32).reshape(8, 2)

    @jax.jit
    def value(key, x, k):
        return jax.grad(lambda x: sampling.gumbel_top_k(key, x, k).log_prob.sum())(x)

    mapped = jax.vmap(value)(keys, logits, k)
    np.testing.assert_allclose(jax.pmap(value)(keys, logits, k), mapped, atol=1e-6)
    np.testing.assert_allclose(value(keys[3], logits[3], k[3]), mapped[3], atol=1e-6)
    assert sampling.gumbel_top_k(keys[0], logits[0, 0], 3).log_prob.shape == ()


INFINITE = st.sampled_from([np.inf, -np.inf, 0.0, 1.0, float(np.finfo(np.float32).min)])
LOGIT = st.one_of(st.floats(-50, 50, width=32), INFINITE)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(LOGIT, min_size=9, max_size=9), st.lists(st.booleans(), min_size=9, max_size=9), st.integers(0, 12))
def test_properties_of_every_subset(logits, valid, k):
    phi, allowed = np.asarray(logits, np.float32), np.asarray(valid)
    mask, rank, log_p, slope = (np.asarray(a) for a in _sample(jnp.asarray(phi), jnp.asarray(allowed), jnp.int32(k)))
    available = allowed & (phi != -np.inf)
    forced = allowed & (phi == np.inf)
    assert mask.sum() == min(k, available.sum())
    assert not mask[~available].any()
    assert mask[forced].sum() == min(k, forced.sum())
    np.testing.assert_array_equal(np.sort(rank), np.arange(9))
    np.testing.assert_array_equal(mask, rank < mask.sum())
    assert np.isfinite(log_p) and log_p <= 1e-5
    assert np.isfinite(slope).all() and (slope[~available | forced] == 0).all()
    assert abs(slope.sum()) < 1e-4


@jax.jit
def _sample(logits, valid, k):
    def log_p(x):
        subset = sampling.gumbel_top_k(jax.random.key(0), x, k, valid=valid)
        return subset.log_prob, subset

    (value, subset), slope = jax.value_and_grad(log_p, has_aux=True)(logits)
    return subset.mask, subset.rank, value, slope


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, {"logits": jnp.arange(3)}),
        (TypeError, {"k": 1.5}),
        (TypeError, {"k": True}),
        (ValueError, {"k": -1}),
        (ValueError, {"k": jnp.asarray([1, 2])}),
        (ValueError, {"logits": jnp.float32(1)}),
        (ValueError, {"valid": jnp.ones((2,), bool)}),
    ],
)
def test_wrong_arguments_are_refused(error, arguments):
    with pytest.raises(error):
        sampling.top_k(**{"logits": jnp.zeros((3,)), "k": 1, "valid": None, **arguments})


def test_a_nan_logit_shows_in_the_log_prob():
    assert np.isnan(sampling.top_k(jnp.asarray([0.0, np.nan, 1.0]), 2).log_prob)
