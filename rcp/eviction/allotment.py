"""How a budget of cache entries is shared out between layers: the same for all, or a pyramid.

A budget is the number of entries that a key-value head keeps, on average over layers and heads, of those of the
context; sinks and other guaranteed entries of the context are part of it. Counts are integers and traced: the sums are
exact and no rate needs a compile of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Int

Across = Literal["head", "layer", "model"]


@dataclass(frozen=True)
class Allotment:
    """How a budget is shared out.

    Attributes:
      layers: "uniform", or "pyramid": more for the first layers (PyramidKV, arXiv 2406.02069).
      across: what competes for entries in one top-k: the entries of a "head"; those of all heads of a "layer" (Ada-KV,
        arXiv 2407.11550); those of the whole "model".
      floor: share of its layer's mean budget that every head is sure of, where heads compete.
      beta: steepness of the pyramid: its last layer gets 1 / beta of the mean (beyond the window).
      window: entries that every layer of a pyramid gets before the rest is shared out.
    """

    layers: Literal["uniform", "pyramid"] = "uniform"
    across: Across = "head"
    floor: float = 0.0
    beta: int = 20
    window: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor={self.floor}: expected a share, from 0 to 1")
        if self.beta < 1 or self.window < 0:
            raise ValueError(f"beta={self.beta}, window={self.window}: expected beta from 1 on, window from 0 on")


UNIFORM = Allotment()
PYRAMID = Allotment(layers="pyramid", window=64)
ADA = Allotment(across="layer", floor=0.2)
GLOBAL = Allotment(across="model")


def layer_budgets(
    allotment: Allotment, budget: Int[Array, " batch"], tokens: Int[Array, " batch"], layers: int
) -> Int[Array, "batch layers"]:
    """Entries that a head of each layer keeps, the mean over its heads. They sum to exactly `layers * budget`.

    Args:
      budget: entries a head keeps, mean over layers.
      tokens: entries there are: no layer gets more.
    """
    budget = jnp.clip(budget.astype(jnp.int32), 0, tokens)
    if allotment.layers == "uniform" or layers == 1:
        return jnp.broadcast_to(budget[:, None], (len(budget), layers))
    inside = jnp.minimum(budget, allotment.window)
    return inside[:, None] + _pyramid(budget - inside, tokens - inside, layers, allotment.beta)


def _pyramid(
    mean: Int[Array, " batch"], most: Int[Array, " batch"], layers: int, beta: int
) -> Int[Array, "batch layers"]:
    """An arithmetic series from 2 mean - mean // beta down to mean // beta, or from `most` on where that is less.

    As its authors' code has it, but for the rounding: partial sums are rounded and their differences taken, so that
    the series sums to `layers * mean`. (`first - last` is even in both cases, so the last partial sum is whole.) The
    authors, and kvpress, round each layer, and kvpress gives up the pyramid where its last layer would be smaller
    than the window.
    """
    last = mean // beta
    first = 2 * mean - last
    last = jnp.where(first > most, 2 * mean - most, last)
    first = jnp.minimum(first, most)
    number = jnp.arange(layers + 1, dtype=jnp.int32)[None]
    fallen = (first - last)[:, None] * (number * (number - 1) // 2) // (layers - 1)
    total = first[:, None] * number - fallen
    return total[:, 1:] - total[:, :-1]
