"""Reinforcement objectives: raise the probability of draws that earned more than a baseline."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rcp import sampling
from rcp.objectives.base import Draws, Outcome, Settings


def advantages(draws: Draws, settings: Settings) -> Float[Array, "samples batch"]:
    """Reward less baseline, with no gradient. Everything is computed within one example, or given from outside.

    "leave_one_out": the mean of the example's other draws (Kool et al. 2019), unbiased. "self_critical": the reward of
    the deterministic mask (Rennie et al., arXiv 1612.00563). "moving_average": of past rewards. "none": 0. With
    `normalise`, divided by the deviation over the example's draws (GRPO, arXiv 2402.03300): no longer unbiased.
    """
    reward = draws.reward
    if settings.baseline == "leave_one_out":
        baseline = sampling.leave_one_out(reward, axis=0)
    else:
        baseline = jnp.zeros_like(reward) if draws.baseline is None else draws.baseline[None]
    advantage = reward - baseline
    if settings.normalise:
        advantage = advantage / (jnp.std(reward, axis=0, keepdims=True) + 1e-4)
    return jax.lax.stop_gradient(advantage)


def reinforce(outcome: Outcome, settings: Settings) -> Float[Array, " batch"]:
    """-mean over draws of advantage * log p (Williams 1992); its gradient estimates that of -E[reward]."""
    assert outcome.draws is not None
    return -jnp.mean(advantages(outcome.draws, settings) * outcome.draws.log_prob, axis=0)


def ppo(outcome: Outcome, settings: Settings) -> Float[Array, " batch"]:
    """-mean over draws of min(r A, clip(r, 1 - c, 1 + c) A) (arXiv 1707.06347).

    r is the ratio of the draw's probability to that under the scores that drew it, A the advantage, c `settings.clip`.
    """
    assert outcome.draws is not None
    advantage = advantages(outcome.draws, settings)
    ratio = jnp.exp(jnp.clip(outcome.draws.log_prob - outcome.draws.old_log_prob, -20.0, 20.0))
    clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage), axis=0)


def entropy(outcome: Outcome, settings: Settings) -> Float[Array, " batch"]:
    """Minus the entropy of the ordered draw, nats: a positive weight keeps the sampler exploring."""
    assert outcome.draws is not None
    return -jnp.mean(outcome.draws.entropy, axis=0)
