"""CoT-Influx's scorer: an MLP for shots and one for tokens, on frozen states of each shot.

Huang et al., "Fewer is More: Boosting LLM Reasoning with Reinforced Context Pruning", arXiv 2312.08901.

Each MLP is LayerNorm(d) -> Linear(d, 512) -> LayerNorm(512) -> GELU -> Linear(512, 2), applied to every position of a
shot; a shot's logits are the mean of its MLP's over the positions of the shot padded to 512. The last layer starts at
weights N(0, 0.02) with bias +1 for keep and -1 for drop, so that everything is first kept with probability sigmoid(2)
= .88. The question is never seen.

Departures: the original's states are those of BERT-large-cased (d = 1024); here the model that answers is read through
its first layers, each shot by itself, so that a token knows only what precedes it in its shot. A padded position counts
in the mean as an all-zero state (what the original's encoder gives there is not known). The first layer starts at
N(0, 1/d) (not known). Scores are the keep logit less the drop logit: a softmax over two is the sigmoid of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rcp.nn import layout
from rcp.nn.lengths import of_own_length
from rcp.nn.match import layer_norm, normal
from rcp.nn.pruner import Scores, compact
from rcp.types import Batch

LAST_DEVIATION, KEEP_BIAS = 0.02, 1.0


@dataclass(frozen=True)
class InfluxConfig:
    """Attributes:
    inputs: width of the states.
    width: of the MLPs' hidden layer.
    positions: that a shot is padded to.
    padding: whether padded positions count in the mean of a shot's logits.
    """

    inputs: int
    width: int = 512
    positions: int = 512
    padding: bool = True


class KeepMLP(nnx.Module):
    """States -> logit of keeping less logit of dropping."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        self.scale_in, self.shift_in = nnx.Param(jnp.ones((1, inputs))), nnx.Param(jnp.zeros((1, inputs)))
        self.first, self.first_bias = normal(rngs, inputs, width), nnx.Param(jnp.zeros((1, width)))
        self.scale, self.shift = nnx.Param(jnp.ones((1, width))), nnx.Param(jnp.zeros((1, width)))
        self.last = normal(rngs, width, 2, scale=LAST_DEVIATION)
        self.last_bias = nnx.Param(jnp.asarray([[KEEP_BIAS, -KEEP_BIAS]]))

    def __call__(self, states: Float[Array, "*batch inputs"]) -> Float[Array, "*batch"]:
        x = states.reshape(-1, states.shape[-1])
        x = layer_norm(x) * self.scale_in[...] + self.shift_in[...]
        x = x @ self.first[...] + self.first_bias[...]
        x = jax.nn.gelu(layer_norm(x) * self.scale[...] + self.shift[...], approximate=False)
        logits = x @ self.last[...] + self.last_bias[...]
        return (logits[:, 0] - logits[:, 1]).reshape(states.shape[:-1])


class InfluxScorer(nnx.Module):
    """See the module."""

    def __init__(self, config: InfluxConfig, rngs: nnx.Rngs):
        self.config = config
        self.shots = KeepMLP(config.inputs, config.width, rngs)
        self.tokens = KeepMLP(config.inputs, config.width, rngs)

    def __call__(
        self,
        batch: Batch,
        features: Float[Array, "batch tokens inputs"] | None = None,
        budget: Int[Array, " batch"] | None = None,
    ) -> Scores:
        """Scores every context token and segment.

        Args:
          batch: whole prompts; only where their segments are is looked at.
          features: `shot_states` at the prompt's places.
          budget: not looked at.
        """
        if features is None:
            raise ValueError('the "cot_influx" scorer needs features')
        mean, count = layout.segment_means(self.shots(features), batch), layout.segment_lengths(batch)
        if self.config.padding:
            count, positions = count.astype(jnp.float32), jnp.float32(self.config.positions)
            padded = jnp.maximum(positions - count, 0.0)
            empty = self.shots(jnp.zeros(self.config.inputs, jnp.float32))
            mean = (mean * count + empty * padded) / (count + padded)
        return Scores(self.tokens(features), mean)


def shot_states(model: Any, batch: Batch, layer: int, positions: int) -> Float[Array, "batch tokens dim"]:
    """The model's hidden states after `layer` layers of each context segment read by itself, at the prompt's places.

    0 elsewhere, and past the first `positions` tokens of a segment. One segment of all examples is read at a time, so
    that memory does not grow with their number.
    """
    length, place = min(positions, batch.role.shape[1]), layout.places(batch)

    def states(_: None, pieces: Batch) -> Float[Array, "batch positions dim"]:
        read = model.hidden(pieces.tokens, lengths=layout.prompt_lengths(pieces), stop=layer).astype(jnp.float32)
        return jnp.pad(read, ((0, 0), (0, length - read.shape[1]), (0, 0)))

    def add(known: Array, number: Array) -> tuple[Array, None]:
        inside = batch.segment == number
        found = of_own_length(states)(None, compact(batch, inside, length))
        own = jnp.take_along_axis(found, jnp.minimum(place, length - 1)[..., None], axis=1)
        return jnp.where((inside & (place < length))[..., None], own, known), None

    nothing = jnp.zeros((*batch.role.shape, model.config.d_model), jnp.float32)
    return jax.lax.scan(add, nothing, jnp.arange(batch.support.shape[1], dtype=jnp.int32))[0]
