"""Every gradient estimator against the enumerated gradient of its own distribution."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp import sampling
from rcp.sampling import ESTIMATORS

from . import enumeration as exact

THETA = np.array([0.0, 1.0, 2.0, -0.5, 0.3, -1.0])
K = 2
SAMPLES = 4
REPEATS = 20_000
UNBIASED = [name for name, kind in ESTIMATORS.items() if kind.unbiased]
BIASED = [name for name, kind in ESTIMATORS.items() if not kind.unbiased]

_numbers = np.random.default_rng(0)
LINEAR = _numbers.normal(size=6).astype(np.float32)
PAIRS = np.triu(_numbers.normal(size=(6, 6)) * 2, 1).astype(np.float32)


compiled = jax.jit(sampling.estimate, static_argnames=("name", "reward", "samples"))
static = jax.jit(sampling.estimate, static_argnames=("name", "k", "reward", "samples"))


def linear(masks):
    return masks @ LINEAR


def quadratic(masks):
    """2 + b z + z A z with A strictly upper: interactions, and a constant that a baseline takes away."""
    return 2 + masks @ LINEAR + jnp.sum((masks @ PAIRS) * masks, axis=-1)


def enumerated(name: str, reward, k: int = K) -> np.ndarray:
    """The gradient of the expected reward under the estimator's own distribution."""
    kind = ESTIMATORS[name].distribution
    sets = exact.plackett_luce_sets if kind == "plackett-luce" else exact.conditional_bernoulli_sets
    rewards = np.asarray(reward(jnp.asarray(exact.subsets(6, k), jnp.float32)), np.float64)
    return exact.gradient(lambda theta: sets(theta, k) @ rewards, THETA)


@cache
def estimates(
    name: str, reward, *, repeats: int = REPEATS, samples: int = SAMPLES, k: int = K, **settings
) -> sampling.Estimate:
    """`repeats` independent estimates: gradient [repeats, 6], reward_mean [repeats]."""
    logits = jnp.asarray(THETA, jnp.float32)

    @jax.jit
    def one(key):
        return sampling.estimate(name, key, logits, k, reward, samples, **settings)

    return jax.lax.map(one, jax.random.split(jax.random.key(7), repeats), batch_size=1000)


def mean_and_error(values) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_two_distributions_have_different_gradients():
    difference = enumerated("reinforce", quadratic) - enumerated("simple", quadratic)
    assert np.linalg.norm(difference) > 0.05 * np.linalg.norm(enumerated("simple", quadratic))


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_average_to_the_enumerated_gradient(name):
    """20,000 estimates of 4 draws: every entry within 4.5 standard errors, and those below 5 % of the gradient."""
    truth = enumerated(name, quadratic)
    got = estimates(name, quadratic)
    mean, error = mean_and_error(got.gradient)
    assert error.max() < 0.05 * np.linalg.norm(truth)
    assert (np.abs(mean - truth) < 4.5 * error + 1e-6).all(), (mean - truth) / error
    reward, spread = mean_and_error(got.reward_mean)
    sets = exact.subsets(6, K)
    plackett_luce = ESTIMATORS[name].distribution == "plackett-luce"
    p = (exact.plackett_luce_sets if plackett_luce else exact.conditional_bernoulli_sets)(THETA, K)
    assert abs(reward - p @ np.asarray(quadratic(jnp.asarray(sets, jnp.float32)))) < 4.5 * spread


@pytest.mark.parametrize("name", BIASED)
def test_biased_estimators_are_biased_and_point_the_right_way(name):
    truth = enumerated(name, quadratic)
    mean, error = mean_and_error(estimates(name, quadratic).gradient)
    assert (np.abs(mean - truth) / error).max() > 6
    assert cosine(mean, truth) > 0.7


def test_a_score_function_of_one_distribution_misses_the_gradient_of_the_other():
    """The trap that `ESTIMATORS[name].distribution` is there to avoid."""
    mean, error = mean_and_error(estimates("conditional-loo", quadratic).gradient)
    assert (np.abs(mean - enumerated("reinforce", quadratic)) / error).max() > 6


@pytest.mark.parametrize("name", ["simple", "conditional-linear"])
def test_a_linear_reward_has_its_exact_gradient_without_variance(name):
    got = estimates(name, linear, repeats=100).gradient
    np.testing.assert_allclose(got, np.broadcast_to(enumerated(name, linear), (100, 6)), atol=2e-6)


def test_imle_approaches_the_gradient_of_a_linear_reward_as_the_step_shrinks():
    truth = enumerated("imle", linear)
    bias = []
    for step in (3.0, 0.1):
        mean, error = mean_and_error(estimates("imle", linear, samples=16, step=step).gradient)
        bias.append(np.abs(mean - truth).max())
    assert bias[0] > 0.05 > 0.03 > bias[1]
    assert bias[1] < 4.5 * error.max() + 0.1 * np.abs(truth).max()


def test_baselines_and_sets_reduce_the_variance():
    def variance(name: str, **settings) -> float:
        return float(np.var(np.asarray(estimates(name, quadratic, **settings).gradient), axis=0).sum())

    assert variance("reinforce") > variance("reinforce-loo") > variance("reinforce-set-loo")
    many = {"samples": 16, "repeats": 4000}  # of few samples the mean slope is itself too noisy to help
    assert 0.8 * variance("conditional-loo", **many) > variance("conditional-linear", **many)


@pytest.mark.strict_dtype
@pytest.mark.parametrize("name", ESTIMATORS)
def test_shapes_dtypes_and_infinite_logits(name):
    """float32 from bfloat16; no gradient for tokens that are certain; jit, and vmap for a batch."""
    logits = jnp.asarray([[0.5, -np.inf, 1.0, np.inf, 0.2, -0.3], [-np.inf, 0, 1, 2, -np.inf, 0]], jnp.bfloat16)

    @jax.jit
    def batch(keys, logits):
        one = lambda key, x: sampling.estimate(name, key, x, 3, quadratic, 8)  # noqa: E731
        return jax.vmap(one)(keys, logits)

    got = batch(jax.random.split(jax.random.key(0), 2), logits)
    assert got.gradient.shape == (2, 6) and got.reward_mean.shape == (2,)
    assert got.gradient.dtype == got.reward_mean.dtype == jnp.float32
    certain = ~np.isfinite(np.asarray(logits, np.float32))
    assert (np.asarray(got.gradient)[certain] == 0).all()
    assert (np.abs(got.gradient).sum(-1) > 0).all() and np.isfinite(got.reward_mean).all()
    assert np.isfinite(got.gradient).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_all_tokens_kept_has_no_gradient(name):
    got = compiled(name, jax.random.key(0), jnp.asarray(THETA, jnp.float32), jnp.int32(6), quadratic, SAMPLES)
    if name == "reinforce":  # the order is still random: zero on average only
        mean, error = mean_and_error(estimates(name, quadratic, repeats=5000, k=6).gradient)
        assert (error > 0).all() and (np.abs(mean) < 4.5 * error).all()
    elif name == "relaxed-successive":
        assert np.abs(got.gradient).max() > 1e-3
    else:
        np.testing.assert_allclose(got.gradient, 0, atol=2e-5)
        np.testing.assert_allclose(got.reward_mean, quadratic(jnp.ones((1, 6)))[0], rtol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_traced_k_gives_what_a_static_one_gives(name):
    logits, key = jnp.asarray(THETA, jnp.float32), jax.random.key(3)

    got = compiled(name, key, logits, jnp.int32(3), quadratic, SAMPLES)
    expected = static(name, key, logits, 3, quadratic, SAMPLES)  # the conditional ones take fewer steps here
    np.testing.assert_allclose(got.gradient, expected.gradient, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, kind in ESTIMATORS.items() if not kind.differentiates])
def test_a_score_function_takes_a_black_box(name):
    def black_box(masks):  # numpy, outside of what jax can differentiate
        call = lambda m: (np.asarray(m) @ LINEAR).astype(np.float32)  # noqa: E731
        return jax.pure_callback(call, jax.ShapeDtypeStruct(masks.shape[:1], jnp.float32), masks)

    logits, key = jnp.asarray(THETA, jnp.float32), jax.random.key(3)
    got = static(name, key, logits, K, black_box, SAMPLES)
    expected = static(name, key, logits, K, linear, SAMPLES)
    np.testing.assert_allclose(got.gradient, expected.gradient, atol=1e-5)


def test_errors_say_what_was_expected():
    key, logits = jax.random.key(0), jnp.zeros(6)
    with pytest.raises(ValueError, match="unknown estimator 'rloo'; expected one of reinforce, "):
        sampling.estimate("rloo", key, logits, K, linear, 4)
    with pytest.raises(ValueError, match="vmap"):
        sampling.estimate("simple", key, logits[None], K, linear, 4)
    with pytest.raises(TypeError, match="floating"):
        sampling.estimate("simple", key, jnp.zeros(6, jnp.int32), K, linear, 4)
    with pytest.raises(ValueError, match="at least 2"):
        sampling.estimate("reinforce-loo", key, logits, K, linear, 1)
    with pytest.raises(ValueError, match="samples"):
        sampling.estimate("reinforce", key, logits, K, linear, 0)
    with pytest.raises(ValueError, match="step"):
        sampling.estimate("imle", key, logits, K, linear, 4, step=0.0)
    with pytest.raises(ValueError, match="temperature"):
        sampling.estimate("straight-through", key, logits, K, linear, 4, temperature=-1.0)
    with pytest.raises(ValueError, match="reward must return"):
        sampling.estimate("simple", key, logits, K, lambda masks: jnp.sum(masks), 4)
