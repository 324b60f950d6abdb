"""Reinforcement objectives against exact enumeration of a small sampler, and the traps of published code."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp import sampling
from rcp.objectives import Draws, Outcome, Settings
from rcp.objectives.policy import advantages, entropy, ppo, reinforce
from tests.sampling.enumeration import gradient, ordered_plackett_luce, orderings
from tests.tiny import Prompt, batch_of

RANKS = orderings(4, 2)  # every ordered draw of 2 among 4
PHI = np.asarray([0.5, -1.0, 0.3, 1.2])
REWARD = np.random.default_rng(0).normal(size=len(RANKS)) + 1.0


def outcome(draws: Draws) -> Outcome:
    count = draws.reward.shape[1]
    batch = batch_of([Prompt((1,))], 6, 1)
    empty = jnp.zeros((count, 1))
    return Outcome(batch, empty, empty, None, None, None, None, jnp.zeros(count, jnp.int32), draws, None)


def exact_gradient() -> np.ndarray:
    """Of the expected reward in the logits, by enumeration in float64."""
    return gradient(lambda phi: ordered_plackett_luce(phi, RANKS, 2) @ REWARD, PHI)


def expected_gradient(objective, settings: Settings, samples: int, baseline=None) -> np.ndarray:
    """The average, over all tuples of `samples` independent draws, of minus the objective's gradient."""
    tuples = np.asarray(list(itertools.product(range(len(RANKS)), repeat=samples)))
    weight = np.prod(ordered_plackett_luce(PHI, RANKS, 2)[tuples], axis=1)
    old = jnp.asarray(np.log(ordered_plackett_luce(PHI, RANKS, 2)), jnp.float32)
    reward = jnp.asarray(REWARD[tuples].T, jnp.float32)
    fixed = None if baseline is None else jnp.full(len(tuples), baseline, jnp.float32)

    def loss(phi):
        log_prob = sampling.log_prob(jnp.tile(phi[None], (len(RANKS), 1)), jnp.asarray(RANKS), 2)
        draws = Draws(reward, old[tuples.T], log_prob[tuples.T], reward, fixed)
        return jnp.sum(jnp.asarray(weight, jnp.float32) * objective(outcome(draws), settings))

    return -np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(PHI, jnp.float32)))


@pytest.mark.parametrize("objective", [reinforce, ppo])
@pytest.mark.parametrize(
    ("baseline", "samples", "value"),
    [("leave_one_out", 3, None), ("none", 1, None), ("self_critical", 1, 2.0), ("moving_average", 2, -1.0)],
)
def test_the_expected_gradient_is_that_of_the_expected_reward(objective, baseline, samples, value):
    """Whatever the baseline, and for PPO where the scores are those that drew."""
    found = expected_gradient(objective, Settings(baseline=baseline), samples, value)
    np.testing.assert_allclose(found, exact_gradient(), atol=1e-5)


def test_a_baseline_that_contains_its_own_reward_is_biased():
    """So the tests above can fail: with the mean of all draws, the gradient shrinks by 1 - 1 / samples."""

    def biased(outcome, settings):
        advantage = jax.lax.stop_gradient(outcome.draws.reward - outcome.draws.reward.mean(0, keepdims=True))
        return -jnp.mean(advantage * outcome.draws.log_prob, axis=0)

    found = expected_gradient(biased, Settings(), 2)
    np.testing.assert_allclose(found, exact_gradient() / 2, atol=1e-5)


def draws_of(reward, log_prob=None, old=None, baseline=None) -> Draws:
    reward = jnp.asarray(reward, jnp.float32)
    zero = jnp.zeros_like(reward)
    return Draws(reward, zero if old is None else old, zero if log_prob is None else log_prob, zero, baseline)


@pytest.mark.parametrize("samples", [2, 3, 4, 7])
def test_leave_one_out_leaves_out_its_own_reward_and_no_other(samples):
    """`values[~i]` is the value counted from the end, not the others: with an odd number, the middle one is itself."""
    reward = np.random.default_rng(samples).normal(size=(samples, 3))
    naive = np.stack([reward[i] - np.delete(reward, i, axis=0).mean(0) for i in range(samples)])
    np.testing.assert_allclose(advantages(draws_of(reward), Settings()), naive, rtol=1e-5, atol=1e-6)
    reversed_index = np.stack([reward[i] - reward[~i] for i in range(samples)])
    if samples > 2:
        assert np.abs(reversed_index - naive).max() > 0.1
    if samples % 2:
        assert (reversed_index[samples // 2] == 0).all()


def test_one_draw_has_no_others():
    with pytest.raises(ValueError, match="at least 2 samples"):
        advantages(draws_of([[1.0]]), Settings())


def test_normalised_advantages_have_unit_deviation_within_an_example():
    reward = np.random.default_rng(0).normal(size=(5, 3)) * [[1, 10, 100]]
    found = advantages(draws_of(reward), Settings(normalise=True))
    np.testing.assert_allclose(np.std(found, axis=0), 5 / 4, rtol=1e-3)  # leave-one-out stretches by n / (n - 1)
    equal = advantages(draws_of(np.ones((4, 2))), Settings(normalise=True))
    np.testing.assert_array_equal(equal, 0)


def test_advantages_carry_no_gradient():
    def total(reward):
        return jnp.sum(jnp.square(advantages(draws_of(reward), Settings())))

    assert not np.any(jax.grad(total)(jnp.asarray([[1.0], [2.0], [4.0]])))


def test_ppo_equals_reinforce_at_ratio_one():
    rng = np.random.default_rng(1)
    log_prob, reward = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))

    def slope(objective):
        return jax.grad(lambda x: jnp.sum(objective(outcome(draws_of(reward, x, log_prob)), Settings())))(log_prob)

    np.testing.assert_allclose(slope(ppo), slope(reinforce), rtol=1e-5)


def test_ppo_stops_where_the_ratio_has_moved_far_enough_in_the_direction_of_the_advantage():
    clip = 0.2
    settings = Settings("none", clip=clip)
    for advantage, ratio in itertools.product((-2.0, 1.5), (0.1, 0.7, 0.95, 1.05, 1.3, 9.0)):

        def value(log_prob, advantage=advantage):
            return ppo(outcome(draws_of([[advantage]], log_prob, jnp.zeros((1, 1)))), settings)[0]

        found, slope = jax.value_and_grad(value)(jnp.full((1, 1), np.log(ratio), jnp.float32))
        expected = -min(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        stopped = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
        np.testing.assert_allclose(slope[0, 0], 0 if stopped else -ratio * advantage, rtol=1e-4)


def test_a_ratio_out_of_float_range_overflows_nothing():
    value = ppo(outcome(draws_of([[1.0], [-1.0]], jnp.full((2, 1), 500.0), jnp.full((2, 1), -500.0))), Settings("none"))
    assert np.isfinite(value).all()


def test_entropy_is_to_be_raised():
    draws = Draws(*[jnp.zeros((2, 2))] * 3, jnp.asarray([[1.0, 2.0], [3.0, 6.0]]), None)
    np.testing.assert_array_equal(entropy(outcome(draws), Settings()), [-2, -4])
