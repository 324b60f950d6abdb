"""What objectives are computed from, and how their values become one loss.

An objective is a pure function of an `Outcome` that returns one value an example. Weighting, masking of filler rows and
averaging over the *global* batch happen once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rcp.types import Batch


class Draws(NamedTuple):
    """M masks drawn for each example, and what they earned.

    Attributes:
      reward: float32 [samples, batch].
      old_log_prob: float32 [samples, batch], under the scores that drew them. No gradient.
      log_prob: float32 [samples, batch], under the current scores; differentiable.
      entropy: float32 [samples, batch], one-sample estimates; differentiable.
      baseline: float32 [batch] or None: the self-critical or moving-average baseline, where one was asked for.
    """

    reward: Float[Array, "samples batch"]
    old_log_prob: Float[Array, "samples batch"]
    log_prob: Float[Array, "samples batch"]
    entropy: Float[Array, "samples batch"]
    baseline: Float[Array, " batch"] | None


class Labels(NamedTuple):
    """Keep-labels in [0, 1], -1 where there is nothing or nothing is known. `tokens` None: those of their segments."""

    segments: Float[Array, "batch segments"]
    tokens: Float[Array, "batch tokens"] | None = None


class Outcome(NamedTuple):
    """What the pruner and the model did with a batch. A field is None unless some objective `needs` it.

    Attributes:
      segment_scores, token_scores: the pruner's logits [batch, segments], [batch, tokens].
      labels: see `Labels`.
      keep: float32 [batch, tokens], relaxed mask.
      nll: float32 [batch], answer NLL (nats a token) read through the relaxed mask.
      kl: float32 [batch], KL (nats a token) from the full-context model's answer distribution to that of the relaxed
        mask.
      asked: int32 [batch], the budget in context tokens.
      draws: see `Draws`.
      multiplier: float32 [], Lagrange multiplier of the budget; differentiable, it is ascended.
    """

    batch: Batch
    token_scores: Float[Array, "batch tokens"]
    segment_scores: Float[Array, "batch segments"]
    labels: Labels | None
    keep: Float[Array, "batch tokens"] | None
    nll: Float[Array, " batch"] | None
    kl: Float[Array, " batch"] | None
    asked: Int[Array, " batch"]
    draws: Draws | None
    multiplier: Float[Array, ""] | None


@dataclass(frozen=True)
class Objective:
    """`value(outcome, settings)` -> float32 [batch], to be minimised.

    `needs`: what the outcome must hold, of "labels", "relaxed", "full", "draws", "multiplier".
    """

    value: Callable[[Outcome, Settings], Float[Array, " batch"]]
    needs: frozenset[str]


@dataclass(frozen=True)
class Settings:
    """The options that objectives read: of advantages and of the clipped ratio (config sections policy, budget)."""

    baseline: str = "leave_one_out"
    normalise: bool = False
    clip: float = 0.2
    granularity: str = "segment"


def global_mean(
    values: Float[Array, " batch"], weight: Float[Array, " batch"], axis_name: str | None
) -> Float[Array, ""]:
    """This device's share of the mean over the global batch: shares add up to the mean (sum them, do not average).

    Filler rows have weight 0; a value there, NaN even, counts neither here nor in the gradient.
    """
    real = weight > 0
    total = jnp.sum(weight)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    values = jnp.where(real, values, 0.0)  # before the product: its derivative would hold the NaN
    return jnp.sum(jnp.where(real, values * weight, 0.0)) / jnp.maximum(total, 1.0)


def combine(
    objectives: Mapping[str, Objective],
    weights: Mapping[str, Float[Array, ""]],
    outcome: Outcome,
    settings: Settings,
    axis_name: str | None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """sum_i weight_i * mean_i over the objectives, and each mean by its name (this device's shares of both)."""
    terms = {
        name: global_mean(objective.value(outcome, settings), outcome.batch.weight, axis_name)
        for name, objective in objectives.items()
    }
    loss = jnp.zeros((), jnp.float32)
    for name, term in terms.items():
        loss = loss + weights[name] * term
    return loss, terms
