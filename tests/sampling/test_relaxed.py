"""Relaxed top-k: the sum, the limits, the gradients, and Xie & Ermon's own test."""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rcp import sampling

from . import enumeration as exact

METHODS: list[Literal["threshold", "successive"]] = ["threshold", "successive"]


@pytest.mark.parametrize("method", METHODS)
def test_entries_sum_to_k_and_approach_the_hard_mask(method):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 20)), jnp.float32)
    k = jnp.asarray([0, 1, 5, 19, 20, 30], jnp.int32)
    for temperature in (1e-3, 0.3, 10.0):
        entries = np.asarray(sampling.relaxed_top_k(logits, k, temperature, method=method))
        np.testing.assert_allclose(entries.sum(-1), np.minimum(k, 20), rtol=2e-6)
        assert (entries >= 0).all()
    hard = np.asarray(sampling.top_k(logits, k).mask)
    cold = np.asarray(sampling.relaxed_top_k(logits, k, 1e-3, method=method))
    np.testing.assert_allclose(cold[:4], hard[:4], atol=6e-2)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_xie_and_ermon(temperature):
    """arXiv 1901.10517, section 5: weights .1 .2 .3 .4, k = 2, 10,000 samples: within .016 total variation."""
    theta = np.log([0.1, 0.2, 0.3, 0.4])
    noise = sampling.gumbel_noise(jax.random.key(0), (10_000, 4))
    logits = noise + jnp.asarray(theta, jnp.float32)[None]
    entries = sampling.relaxed_top_k(logits, 2, temperature, method="successive")
    observed = exact.counts(np.asarray(sampling.top_k(entries, 2).mask), exact.subsets(4, 2)) / 10_000
    assert np.abs(observed - exact.plackett_luce_sets(theta, 2)).sum() / 2 < 0.016


def test_successive_equals_the_papers_recursion_and_may_exceed_one():
    logits = np.array([0.0, 1.0, 2.0, -0.5])
    for temperature in (0.5, 2.0):
        weights, expected = logits.copy(), np.zeros(4)
        for _ in range(3):
            taken = np.exp(weights / temperature) / np.exp(weights / temperature).sum()
            expected += taken
            weights = weights + np.log(1 - taken)
        got = sampling.relaxed_top_k(jnp.asarray(logits, jnp.float32), 3, temperature, method="successive")
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert float(sampling.relaxed_top_k(jnp.asarray([5.0, 0.0, 0.0]), 2, 5.0, method="successive").max()) > 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_gradients(method, temperature):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.float32)
    entries = jax.jit(lambda x, tau: sampling.relaxed_top_k(x, 2, tau, method=method))
    check_grads(entries, (logits, jnp.float32(temperature)), order=1, atol=2e-2, rtol=2e-2, eps=1e-2)


def test_threshold_gradient_equals_finite_differences_in_float64():
    logits, k, tau = np.random.default_rng(4).normal(size=9) * 2, 4, 0.7
    weight = np.random.default_rng(5).normal(size=9)

    def value(phi):
        low, high = phi.min() - 20, phi.max() + 20
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if (1 / (1 + np.exp(-(phi - middle) / tau))).sum() > k else (low, middle)
        return (weight / (1 + np.exp(-(phi - low) / tau))).sum()

    w = jnp.asarray(weight, jnp.float32)
    got = jax.grad(lambda x: jnp.sum(w * sampling.relaxed_top_k(x, k, tau)))(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(got, exact.gradient(value, logits), atol=1e-5)
    assert abs(float(got.sum())) < 1e-6  # a common shift moves the threshold with it


@pytest.mark.parametrize(
    ("scale", "offset", "temperature"), [(1.0, 1e4, 0.1), (1e4, 0.0, 0.01), (1e-3, -1e3, 1.0), (0.0, 3.0, 1e-3)]
)
def test_threshold_sums_to_k_at_any_scale(scale, offset, temperature):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 500)) * scale + offset, jnp.float32)
    entries, back = jax.vjp(lambda x: sampling.relaxed_top_k(x, jnp.asarray([1, 100, 499]), temperature), logits)
    np.testing.assert_allclose(entries.sum(-1), [1, 100, 499], rtol=1e-5)
    assert np.isfinite(back(jnp.asarray(np.random.default_rng(1).normal(size=(3, 500)), jnp.float32))[0]).all()


@pytest.mark.parametrize("gap", [50.0, 90.0, 1e3, 1e9])
def test_no_token_is_taken_twice_however_far_it_leads(gap):
    def loss(x):
        entries = sampling.relaxed_top_k(x, 2, 1.0, method="successive")
        return jnp.sum(jnp.square(entries)), entries

    logits = jnp.asarray([gap, 0.0, 0.5, -0.5], jnp.float32)
    (_, entries), slope = jax.value_and_grad(loss, has_aux=True)(logits)
    rest = np.exp([0.0, 0.5, -0.5])
    np.testing.assert_allclose(entries, [1.0, *rest / rest.sum()], atol=1e-5)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("method", METHODS)
def test_infinite_logits(method):
    inf = np.inf
    logits = jnp.asarray(
        [[inf, 0, 1, -inf, 2, 0.5], [inf, inf, inf, 0, 0, 0], [-inf] * 6, [0.0, 1, 2, 3, 4, 5]], jnp.float32
    )
    valid = jnp.asarray([[True] * 6] * 3 + [[False, True, True, True, False, True]])
    k = jnp.asarray([3, 2, 2, 4], jnp.int32)

    def loss(x):
        entries = sampling.relaxed_top_k(x, k, 0.5, method=method, valid=valid)
        return jnp.sum(jnp.square(entries)), entries

    (_, entries), slope = jax.value_and_grad(loss, has_aux=True)(logits)
    np.testing.assert_allclose(entries.sum(-1), [3, 2, 0, 4], rtol=1e-6)
    assert entries[0, 0] == 1 and entries[0, 3] == 0 and entries[3, 4] == 0
    np.testing.assert_array_equal(entries[1], [1, 1, 0, 0, 0, 0])
    assert np.isfinite(slope).all()


def test_long_bfloat16_context():
    logits = (jax.random.normal(jax.random.key(0), (32_768,)) * 20).astype(jnp.bfloat16)
    for k in (1, 8_192, 32_767):
        entries, back = jax.vjp(lambda x, k=k: sampling.relaxed_top_k(x, k, 0.1), logits)
        assert float(entries.sum()) == pytest.approx(k, rel=1e-5)
        assert np.isfinite(np.asarray(back(entries)[0], np.float32)).all()


def test_traced_k_and_temperature_per_example():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12)), jnp.float32)
    k, tau = jnp.asarray([1, 4, 7], jnp.int32), jnp.asarray([0.1, 1.0, 5.0])
    for method in METHODS:
        got = jax.jit(partial(sampling.relaxed_top_k, method=method, max_k=8))(logits, k, tau)
        for row in range(3):
            alone = sampling.relaxed_top_k(logits[row], int(k[row]), float(tau[row]), method=method)
            np.testing.assert_allclose(got[row], alone, atol=1e-5)


def test_a_traced_k_beyond_its_bound_is_nan_rather_than_wrong():
    entries = sampling.relaxed_top_k(jnp.zeros((2, 6)), jnp.asarray([2, 4]), 1.0, method="successive", max_k=3)
    np.testing.assert_array_equal(np.isnan(entries).all(-1), [False, True])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.floats(-100, 100, width=32), st.sampled_from([np.inf, -np.inf])), min_size=8, max_size=8),
    st.integers(0, 9),
    st.sampled_from([0.05, 1.0, 20.0]),
)
def test_threshold_properties(logits, k, temperature):
    phi = np.asarray(logits, np.float32)
    entries, slope = (np.asarray(a) for a in _relaxed(jnp.asarray(phi), jnp.int32(k), jnp.float32(temperature)))
    assert ((entries >= 0) & (entries <= 1)).all()
    assert entries.sum() == pytest.approx(min(k, (phi > -np.inf).sum()), abs=1e-4)
    assert np.isfinite(slope).all()
    finite = np.isfinite(phi)
    assert (
        np.diff(entries[finite][np.argsort(phi[finite], kind="stable")]) >= 0
    ).all()  # keeps the order of the logits


@jax.jit
def _relaxed(logits, k, temperature):
    weights = jnp.arange(8.0)
    entries, back = jax.vjp(lambda x: sampling.relaxed_top_k(x, k, temperature), logits)
    return entries, back(weights)[0]


def test_straight_through_has_the_hard_value_bit_for_bit_and_the_soft_gradient():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 33)), jnp.float32)
    hard = sampling.top_k(logits, 7).mask
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 33)), jnp.float32)

    def soft(x):
        return sampling.relaxed_top_k(x, 7, 0.3)

    value, slope = jax.value_and_grad(lambda x: jnp.sum(weights * sampling.straight_through(hard, soft(x))))(logits)
    np.testing.assert_array_equal(sampling.straight_through(hard, soft(logits)), hard.astype(jnp.float32))
    assert float(value) == pytest.approx(float(jnp.sum(weights * hard)), rel=1e-6)
    np.testing.assert_array_equal(slope, jax.grad(lambda x: jnp.sum(weights * soft(x)))(logits))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        sampling.relaxed_top_k(jnp.zeros((3,)), 1, 0.0)
    with pytest.raises(ValueError, match="'threshold' or 'successive'"):
        sampling.relaxed_top_k(jnp.zeros((3,)), 1, 1.0, method="sinkhorn")  # pyright: ignore[reportArgumentType]
