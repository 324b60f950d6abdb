"""Low-rank updates of a frozen model's stacked matrices (LoRA, Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

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
    """The model's parameters with W + A B in place of W, in W's own dtype."""
    layers = dict(params["layers"])
    for name, factors in lora.items():
        update = jnp.einsum("lir,lro->lio", factors["a"], factors["b"])
        layers[name] = (layers[name].astype(jnp.float32) + update).astype(layers[name].dtype)
    return {**params, "layers": layers}
