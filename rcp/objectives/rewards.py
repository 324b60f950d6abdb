"""What a draw earns: parts that are added, or CoT-Influx's product of answer and length (arXiv 2312.08901)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class RewardWeights:
    """How a draw is rewarded and the weights of the parts (config section reward)."""

    exact_match: float = 1.0
    likelihood: float = 1.0
    length: float = 0.0
    kind: Literal["additive", "cot_influx"] = "additive"
    window: int = 2048


def reward(
    nll: Float[Array, "*batch"],
    exact: Bool[Array, "*batch"],
    kept: Int[Array, "*batch"],
    context: Int[Array, "*batch"],
    weights: RewardWeights,
) -> Float[Array, "*batch"]:
    """The answer's part a = exact_match * [exact] + likelihood / (1 + NLL), and what the length does to it.

    "additive": a - length * t / n, a price on the share of the context kept, since the budget itself is exact here.
    "cot_influx": a * (t / T)^w with w = 1 for t <= T and -1 above: best where the window is just filled. The factor is
    as published; that its two terms are added, and the weights, are ours (the sum is not certain, R_acc not known).

    Args:
      nll: of the gold answer, nats a token. exact: greedy decoding gives the answer.
      kept: t, context tokens kept, forced ones among them. context: n, all of them. T is `weights.window`.
    """
    answer = weights.exact_match * exact.astype(jnp.float32) + weights.likelihood / (1.0 + nll)
    used = kept.astype(jnp.float32)
    if weights.kind == "cot_influx":
        return answer * jnp.minimum(used / weights.window, weights.window / jnp.maximum(used, 1.0))
    return answer - weights.length * used / jnp.maximum(context, 1).astype(jnp.float32)
