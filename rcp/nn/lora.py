"""Low-rank updates of a frozen model's stacked matrices (LoRA, Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rcp.nn.layers import LowRank

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def init_lora(params: dict[str, Any], rank: int, key: Array) -> dict[str, Any]:
    """A [layers, inputs, rank] (normal) and B [layers, rank, outputs] (0) for each projection: no change at first."""
    out = {}
    for number, name in enumerate(TARGETS):
        layers, inputs, outputs = params["layers"][name].shape
        noise = jax.random.normal(jax.random.fold_in(key, number), (layers, inputs, rank))
        out[name] = {"a": noise * inputs**-0.5, "b": jnp.zeros((layers, rank, outputs))}
    return out


def apply_lora(params: dict[str, Any], lora: dict[str, Any]) -> dict[str, Any]:
    """The model's parameters with `LowRank(W, A, B)` in place of W, which stands for W + A B.

    The sum is never made: `rcp.nn.layers.linear` adds x A B to x W in float32, so that an update far below what the
    compute dtype resolves next to W counts in full, and W takes no second place in memory.
    """
    layers = {name: LowRank(params["layers"][name], **factors) for name, factors in lora.items()}
    return {**params, "layers": {**params["layers"], **layers}}
