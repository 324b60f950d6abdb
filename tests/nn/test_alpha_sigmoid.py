"""The alpha-sigmoid against alpha-entmax by brute force, closed forms and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.nn.alpha_sigmoid import alpha_sigmoid

ALPHAS = (1.0, 1.001, 1.3, 1.5, 2.0, 3.0, 5.0, 8.0)
POINTS = np.concatenate([np.linspace(-12, 12, 97), np.linspace(-1.2, 1.2, 97)]).astype(np.float32)


@pytest.fixture(scope="module")
def found() -> tuple[np.ndarray, np.ndarray]:
    """p and dp/dx, [alphas, points]."""
    value = jax.vmap(alpha_sigmoid, in_axes=(None, 0))
    slope = jax.vmap(lambda x, a: jax.vmap(jax.grad(alpha_sigmoid), in_axes=(0, None))(x, a), in_axes=(None, 0))
    alphas = jnp.asarray(ALPHAS, jnp.float32)
    return tuple(np.asarray(x, np.float64) for x in jax.jit(lambda x: (value(x, alphas), slope(x, alphas)))(POINTS))  # pyright: ignore


def entmax_beside_zero(x: np.ndarray, alpha: float) -> np.ndarray:
    """First entry of alpha-entmax of (x, 0), by bisection for its threshold, in float64 (Peters et al., section 4)."""
    pair = np.stack([x, np.zeros_like(x)]).astype(np.float64) * (alpha - 1)
    low, high = pair.max(axis=0) - 1, pair.max(axis=0)
    for _ in range(200):
        middle = (low + high) / 2
        too_much = (np.maximum(pair - middle, 0) ** (1 / (alpha - 1))).sum(axis=0) > 1
        low, high = np.where(too_much, middle, low), np.where(too_much, high, middle)
    larger = np.maximum(pair.max(axis=0) - low, 0) ** (1 / (alpha - 1))  # the smaller is too near the threshold
    return np.where(x > 0, larger, 1 - larger)


def test_it_is_alpha_entmax_beside_zero(found):
    for alpha, p in zip(ALPHAS[1:], found[0][1:], strict=True):
        exact = entmax_beside_zero(POINTS, float(np.float32(alpha)))
        np.testing.assert_allclose(p, exact, atol=2e-6, err_msg=f"alpha {alpha}")


@pytest.mark.parametrize("alpha", [16.0, 30.0, 64.0])
def test_at_zero_it_is_a_half_for_any_alpha(alpha):
    value, slope = jax.value_and_grad(alpha_sigmoid)(jnp.float32(0.0), alpha)
    assert value == pytest.approx(0.5, abs=1e-3) and slope == pytest.approx(2.0 ** (alpha - 3), rel=0.1)


def test_closed_forms(found):
    x = POINTS.astype(np.float64)
    half = np.clip(x / 2, -1, 1)
    closed = {
        1.0: 1 / (1 + np.exp(-x)),
        1.5: (1 + half * np.sqrt(2 - half**2)) / 2,
        2.0: np.clip((1 + x) / 2, 0, 1),
    }
    for alpha, p in closed.items():
        np.testing.assert_allclose(found[0][ALPHAS.index(alpha)], p, atol=3e-7, err_msg=f"alpha {alpha}")


def test_beyond_the_support_it_is_exactly_0_and_1_and_flat(found):
    for alpha, p, slope in zip(ALPHAS[2:], found[0][2:], found[1][2:], strict=True):
        beyond = (float(np.float32(alpha)) - 1) * np.abs(POINTS.astype(np.float64)) > 1 + 1e-6
        assert beyond.any()
        np.testing.assert_array_equal(p[beyond], (POINTS > 0)[beyond])
        np.testing.assert_array_equal(slope[beyond], 0.0)


def test_the_gradient_is_that_of_finite_differences(found):
    step = 1e-6
    for alpha, slope in zip(ALPHAS[2:], found[1][2:], strict=True):
        exact, x = float(np.float32(alpha)), POINTS.astype(np.float64)
        inside = (exact - 1) * np.abs(x) < 0.99
        ahead, behind = (entmax_beside_zero(x + sign * step, exact) for sign in (1, -1))
        differences = ((ahead - behind) / (2 * step))[inside]
        np.testing.assert_allclose(slope[inside], differences, rtol=2e-3, atol=2e-4, err_msg=f"alpha {alpha}")
    sigmoid = found[0][0] * (1 - found[0][0])
    np.testing.assert_allclose(found[1][0], sigmoid, atol=1e-6)


def test_it_grows_with_x_and_is_symmetric(found):
    for p in found[0]:
        assert np.all(np.diff(p[:97]) >= -1e-7)
        np.testing.assert_allclose(p[:97] + p[:97][::-1], 1.0, atol=1e-6)
