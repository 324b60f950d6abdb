"""What a draw earns."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the parts of the reward (config section reward)."""

    exact_match: float = 1.0
    likelihood: float = 1.0
    length: float = 0.0


def reward(
    nll: Float[Array, "*batch"], exact: Bool[Array, "*batch"], share: Float[Array, "*batch"], weights: RewardWeights
) -> Float[Array, "*batch"]:
    """exact_match * [exact] + likelihood / (1 + NLL) - length * share.

    The first two parts are CoT-Influx's (arXiv 2312.08901), added as there; the length is a price on the share of the
    context kept, since the budget itself is exact here.

    Args:
      nll: of the gold answer, nats a token. exact: greedy decoding gives the answer. share: of the context kept.
    """
    return weights.exact_match * exact.astype(jnp.float32) + weights.likelihood / (1.0 + nll) - weights.length * share
