"""A model's parameters as the programs of `rcp.infer` are given them, and the copies of them that decoding reads."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rcp.infer import programs
from rcp.nn.step import DecodingWeights
from rcp.nn.transformer import Transformer


class ModelWeights:
    """Attributes:
    graph, params: of the model, as `nnx.split` gives them.
    layers: each layer's parameters as arrays of their own; rounded: their matrices in 8 bits (`rcp.nn.step.unstacked`).
      Each is a copy of all layers, made when it is first asked for.
    """

    def __init__(self, model: Transformer):
        self.graph, params = nnx.split(model)
        self.params = jax.tree.map(jnp.asarray, params)

    @property
    def model(self) -> tuple[nnx.GraphDef, Any]:
        """The first arguments of every program."""
        return self.graph, self.params

    @cached_property
    def layers(self) -> DecodingWeights:
        return programs.weights_of(*self.model)

    @cached_property
    def rounded(self) -> DecodingWeights:
        return programs.weights_of(*self.model, int8=True)
