"""The optax chain: what moves and what does not, clipping, accumulation, schedules, steps that are not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcp.config import ObjectiveConfig, OptimConfig
from rcp.train.optim import learning_rate, make_optimizer, objective_weight

PARAMS = {"pruner": {"w": jnp.asarray([1.0, -2.0, 3.0])}, "lora": {"a": jnp.ones((2, 2))}}
PLAIN = OptimConfig(learning_rate=0.1, schedule="constant", clip_norm=0.0)


def run(optimizer, params, gradients):
    """Parameters after these gradients, and the last state."""

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for grads in gradients:
        params, state = step(params, state, grads)
    return params, state


def like(params, value):
    return jax.tree.map(lambda x: jnp.full_like(x, value), params)


def test_each_partition_has_its_own_rate_and_adam():
    config = OptimConfig(learning_rate=0.1, model_learning_rate=0.01, schedule="constant", clip_norm=0.0)
    params, _ = run(make_optimizer(config, 10, ("pruner", "lora")), PARAMS, [like(PARAMS, 5.0)])
    # Adam's first step is the learning rate in the gradient's direction.
    np.testing.assert_allclose(params["pruner"]["w"], PARAMS["pruner"]["w"] - 0.1, rtol=1e-4)
    np.testing.assert_allclose(params["lora"]["a"], PARAMS["lora"]["a"] - 0.01, rtol=1e-4)


def test_gradients_are_clipped_by_their_global_norm_in_each_partition():
    """Adam forgets a constant scale, so look at a second, small gradient after a first, large one."""
    large, small = like(PARAMS, 100.0), like(PARAMS, 0.1)
    clipped = OptimConfig(learning_rate=0.1, schedule="constant", clip_norm=1.0)
    found, _ = run(make_optimizer(clipped, 10, ("pruner", "lora")), PARAMS, [large, small])
    by_hand = {
        "pruner": [{"w": jnp.full((3,), 3**-0.5)}, small["pruner"]],
        "lora": [{"a": jnp.full((2, 2), 0.5)}, small["lora"]],
    }
    for name, gradients in by_hand.items():
        expected, _ = run(optax.adamw(0.1, weight_decay=0.0), PARAMS[name], gradients)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found[name], expected)


def test_accumulated_gradients_equal_their_mean_at_once():
    rng = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS) for _ in range(6)]
    config = OptimConfig(learning_rate=0.1, clip_norm=0.5, accumulate=3, weight_decay=0.1, warmup_steps=1)
    found, _ = run(make_optimizer(config, 12, ("pruner", "lora")), PARAMS, gradients)
    means = [jax.tree.map(lambda *x: sum(x) / 3, *gradients[i : i + 3]) for i in (0, 3)]
    whole = OptimConfig(learning_rate=0.1, clip_norm=0.5, weight_decay=0.1, warmup_steps=1)
    expected, _ = run(make_optimizer(whole, 4, ("pruner", "lora")), PARAMS, means)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, expected)
    between, _ = run(make_optimizer(config, 12, ("pruner", "lora")), PARAMS, gradients[:2])
    jax.tree.map(np.testing.assert_array_equal, between, PARAMS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(bad, accumulate):
    config = OptimConfig(learning_rate=0.1, accumulate=accumulate)
    good = like(PARAMS, 0.5)
    poisoned = {**good, "pruner": {"w": jnp.asarray([0.1, bad, 0.1])}}
    optimizer = make_optimizer(config, 10, ("pruner", "lora"))
    expected, _ = run(optimizer, PARAMS, [good, good])
    found, state = run(optimizer, PARAMS, [good, poisoned, poisoned, good])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (int(state.total_notfinite), int(state.notfinite_count)) == (2, 0)
    _, state = run(optimizer, PARAMS, [good, poisoned, poisoned])
    assert (int(state.total_notfinite), int(state.notfinite_count)) == (2, 2)


def test_the_multiplier_rises_while_over_budget_and_never_falls_below_zero():
    config = OptimConfig(learning_rate=7.0, dual_learning_rate=0.5, clip_norm=1e-3)
    optimizer = make_optimizer(config, 10, ("dual",))
    start = {"dual": {"budget": jnp.zeros(())}}
    over, under = [{"dual": {"budget": jnp.asarray(x)}} for x in (-0.2, 0.3)]  # minus the violation
    assert run(optimizer, start, [over, over])[0]["dual"]["budget"] == pytest.approx(0.2)
    assert run(optimizer, start, [over, over, under])[0]["dual"]["budget"] == pytest.approx(0.05)
    assert run(optimizer, start, [over, over, under, under])[0]["dual"]["budget"] == 0
    assert run(optimizer, start, [under])[0]["dual"]["budget"] == 0


@pytest.mark.parametrize(
    ("schedule", "values"),
    [("constant", [0, 0.5, 1, 1, 1]), ("linear", [0, 0.5, 1, 0.5, 0]), ("cosine", [0, 0.5, 1, 0.5, 0])],
)
def test_learning_rates_warm_up_and_then_fall(schedule, values):
    config = OptimConfig(schedule=schedule, warmup_steps=10)
    rate = learning_rate(config, 2.0, 30)
    np.testing.assert_allclose([rate(n) for n in (0, 5, 10, 20, 30)], 2 * np.asarray(values), atol=1e-6)
    assert learning_rate(OptimConfig(schedule="constant"), 2.0, 30)(0) == 2.0


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (ObjectiveConfig(2.0), [2, 2, 2, 2]),
        (ObjectiveConfig(2.0, "linear", 1.0, 0.5), [2, 1.5, 1, 1]),
        (ObjectiveConfig(2.0, "linear", 0.0, 1.0, steps=5), [0, 2, 2, 2]),
        (ObjectiveConfig(2.0, "cosine", 0.0, 1.0), [0, 1, 2, 2]),
    ],
)
def test_weights_of_objectives_follow_their_schedules(config, values):
    weight = objective_weight(config, 10)
    np.testing.assert_allclose([weight(n) for n in (0, 5, 10, 99)], values, atol=1e-6)
