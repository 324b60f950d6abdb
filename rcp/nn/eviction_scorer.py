"""The network that scores cache entries: what an entry looks like -> how much it will be attended to.

One small network a layer, or one for each key-value head, as one stack of parameters with a leading axis of layers:

    h = gelu(x W1 + b1);  h = h + sum_j c_j * h[. + j];  h = gelu(h W2 + b2);  score = h w3 + b3

where the sum runs over the `kernel` neighbouring entries of the same head (absent with kernel 1; c starts at 0). The
last layer starts small, so that training begins with nearly equal scores. Parameters are plain arrays, as LoRA's are:
an eviction policy holds them and picks its layer's slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Heads = Literal["shared", "own", "layer"]
LAST_DEVIATION = 0.01


@dataclass(frozen=True)
class ScorerShape:
    """Attributes:
    layers, kv_heads: of the model.
    inputs: numbers that describe an entry of a head. common: of the token, whichever head.
    heads: "shared": one network a layer, which sees one head's entry at a time; "own": one for each head; "layer": one
      that sees the entries of all heads of a token, which needs all heads to hold the same tokens.
    width: of both hidden layers. kernel: neighbouring entries that are mixed, odd.
    """

    layers: int
    kv_heads: int
    inputs: int
    common: int = 0
    heads: Heads = "layer"
    width: int = 64
    kernel: int = 1


class Described(NamedTuple):
    """What the network sees of a layer's entries."""

    heads: Float[Array, "batch kv_heads entries inputs"]
    common: Float[Array, "batch entries common"] | None
    valid: Bool[Array, "batch kv_heads entries"]


LayerParams = Mapping[str, Array]
"""Parameters by name; of a layer, or stacked over layers."""


def init_scorer(shape: ScorerShape, key: Array) -> dict[str, Array]:
    """Parameters of all layers, float32, each with a leading axis of layers and one of networks."""
    s = shape
    together = s.heads == "layer"
    networks = s.kv_heads if s.heads == "own" else 1
    inputs = s.inputs * (s.kv_heads if together else 1) + s.common
    outputs = s.kv_heads if together else 1

    def normal(number: int, deviation: float, *sizes: int) -> Array:
        return deviation * jax.random.normal(jax.random.fold_in(key, number), (s.layers, networks, *sizes))

    def zeros(*sizes: int) -> Array:
        return jnp.zeros((s.layers, *sizes), jnp.float32)

    weights = {
        "first": normal(0, inputs**-0.5, inputs, s.width),
        "first_bias": zeros(networks, s.width),
        "second": normal(1, s.width**-0.5, s.width, s.width),
        "second_bias": zeros(networks, s.width),
        "last": normal(2, LAST_DEVIATION, s.width, outputs),
        "last_bias": zeros(s.kv_heads),
    }
    return weights | ({"mix": zeros(networks, s.kernel, s.width)} if s.kernel > 1 else {})


def score_layer(shape: ScorerShape, w: LayerParams, described: Described) -> Float[Array, "batch kv_heads entries"]:
    """Scores of one layer's entries, float32. At slots not in use they are of no account."""
    x, valid = described.heads.astype(jnp.float32), described.valid
    batch, _, entries, _ = x.shape
    common = None if described.common is None else described.common.astype(jnp.float32)
    if shape.heads == "layer":
        x = jnp.moveaxis(x, 1, 2).reshape(batch, 1, entries, -1)
        valid = valid.any(axis=1, keepdims=True)
    if common is not None:
        x = jnp.concatenate([x, jnp.broadcast_to(common[:, None], (*x.shape[:3], common.shape[-1]))], axis=-1)

    def through(x: Array, matrix: Array) -> Array:
        """Each head's network, or the one that all share."""
        if shape.heads == "own":
            return jnp.einsum("bhni,hio->bhno", x, matrix)
        return jnp.einsum("bhni,io->bhno", x, matrix[0])

    def per_head(bias: Array) -> Array:
        return bias[None, :, None]  # [1, networks, 1, width]

    h = jax.nn.gelu(through(x, w["first"]) + per_head(w["first_bias"]))
    if shape.kernel > 1:
        h = h + _mixed(jnp.where(valid[..., None], h, 0.0), w["mix"])
    h = jax.nn.gelu(through(h, w["second"]) + per_head(w["second_bias"]))
    scores = through(h, w["last"])
    scores = jnp.moveaxis(scores[:, 0], 2, 1) if shape.heads == "layer" else scores[..., 0]
    return scores + w["last_bias"][None, :, None]


def _mixed(h: Float[Array, "batch heads entries width"], mix: Float[Array, "networks kernel width"]) -> Array:
    """A convolution over entries, each unit by itself; beyond the ends stands 0."""
    kernel, entries = mix.shape[1], h.shape[2]
    half = kernel // 2
    padded = jnp.pad(h, ((0, 0), (0, 0), (half, half), (0, 0)))
    parts = (padded[:, :, j : j + entries] * mix[None, :, j, None] for j in range(kernel))
    return jnp.asarray(sum(parts))
