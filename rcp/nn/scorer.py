"""Context and question -> logits of keeping each context token and segment.

What makes a segment needed is rarely what it says by itself: it shares a name with the question, or with a segment that
does. The transformer scorers therefore have, beside ordinary attention within a segment, *match attention* between
segments: its weights depend only on how similar two tokens' inputs are (a cosine in a learned projection, shared by
query and key), with a learned threshold below which a token attends to nothing. So "the same name" is seen for names
that never occurred in training, and one block is one hop: match a token elsewhere, spread what it brought over the
segment. Along these paths goes a *relevance*, 1 on the question at first: a word that many segments share passes on
little of it (the weights of a token sum to less than 1), a rare one much, as in BM25; and each block carries it one
segment further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rcp.nn import layout
from rcp.nn.match import Block, layer_norm, normal
from rcp.nn.pruner import Scores
from rcp.nn.transformer import Transformer
from rcp.types import Batch, Role

MAX_OFFSET = 32  # places within a segment that are told apart; later ones share the last


@dataclass(frozen=True)
class ScorerConfig:
    """Attributes:
    kind: "hidden": match-attention transformer on the model's hidden states; "mlp": per-token MLP on them and on the
      question's mean; "standalone": the transformer on token embeddings of its own, which needs no model.
    inputs: width of the hidden states, or vocabulary of the standalone scorer.
    width, depth, heads: of the transformer (heads of each of the two kinds of attention).
    """

    kind: Literal["hidden", "mlp", "standalone"]
    inputs: int
    width: int = 128
    depth: int = 2
    heads: int = 4


def question_first(batch: Batch) -> tuple[Int[Array, "batch tokens"], Bool[Array, "batch tokens"]]:
    """The order in which the scorer's model reads: question, instruction, context; and which of these places are real.

    A causal model then reads every context token knowing the question. The answer is not read.
    """
    rank = jnp.full(batch.role.shape, 3, jnp.int32)
    for place, role in enumerate((Role.QUESTION, Role.INSTRUCTION, Role.CONTEXT)):
        rank = jnp.where(batch.role == role, place, rank)
    order = jnp.argsort(rank, axis=1, stable=True).astype(jnp.int32)
    return order, jnp.take_along_axis(rank, order, axis=1) < 3


def early_features(model: Transformer, batch: Batch, layer: int) -> Float[Array, "batch tokens dim"]:
    """The model's hidden states after `layer` layers, read question first, put back in the prompt's own order."""
    order, there = question_first(batch)
    lengths = jnp.sum(there, axis=1, dtype=jnp.int32)
    hidden = model.hidden(jnp.take_along_axis(batch.tokens, order, axis=1), lengths=lengths, stop=layer)
    return jnp.take_along_axis(hidden, jnp.argsort(order, axis=1)[..., None], axis=1)


def _masked_mean(x: Float[Array, "batch tokens dim"], mask: Bool[Array, "batch tokens"]) -> Float[Array, "batch 1 dim"]:
    weight = mask.astype(jnp.float32)[..., None]
    return jnp.sum(x * weight, axis=1, keepdims=True) / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)


class Scorer(nnx.Module):
    """See the module. Scores start near 0: before training every subset is as likely as any other."""

    def __init__(self, config: ScorerConfig, rngs: nnx.Rngs):
        self.config = config
        width, inputs = config.width, config.inputs
        if config.kind == "standalone":
            self.embedding = normal(rngs, inputs, width, scale=1.0)
            inputs = width
        if config.kind == "mlp":
            self.first = normal(rngs, 3 * inputs, width)
            self.second = normal(rngs, width, width)
        else:
            self.into = normal(rngs, inputs, width)
            self.role = normal(rngs, len(Role), width, scale=0.5)
            self.place = normal(rngs, MAX_OFFSET, width, scale=0.5)
            for number in range(config.depth):
                setattr(self, f"block{number}", Block(inputs, width, config.heads, rngs))
        self.token_head = normal(rngs, width, 1, scale=0.01)
        self.segment_head = normal(rngs, width, 1, scale=0.01)

    def __call__(self, batch: Batch, features: Float[Array, "batch tokens inputs"] | None = None) -> Scores:
        """Scores every context token and segment.

        Args:
          batch: whole prompts; their answers are not looked at.
          features: hidden states of the model at the prompt's places (`early_features`); None for "standalone".
        """
        read = (batch.role != Role.PAD) & (batch.role != Role.ANSWER)
        if self.config.kind == "standalone":
            features = jnp.take(self.embedding[...], batch.tokens, axis=0, mode="clip")
        elif features is None:
            raise ValueError(f'the "{self.config.kind}" scorer needs features')
        else:  # what all tokens of a prompt have in common (a large part of a language model's states) tells nothing
            features = features - _masked_mean(features, read)
        inputs = layer_norm(features)
        x = self._mlp(inputs, batch) if self.config.kind == "mlp" else self._transformer(inputs, batch, read)
        x = layer_norm(x)
        tokens = (x @ self.token_head[...])[..., 0]
        segments = layout.segment_means(x, batch) @ self.segment_head[...]
        scale = self.config.width**0.5
        return Scores(scale * tokens, scale * segments[..., 0])

    def _mlp(self, inputs: Any, batch: Batch) -> Float[Array, "batch tokens width"]:
        question = _masked_mean(inputs, batch.role == Role.QUESTION)
        joint = [inputs, inputs * question, jnp.broadcast_to(question, inputs.shape)]
        return jax.nn.gelu(jnp.concatenate(joint, axis=-1) @ self.first[...]) @ self.second[...]

    def _transformer(self, inputs: Any, batch: Batch, read: Any) -> Float[Array, "batch tokens width"]:
        group, groups = layout.groups(batch), batch.support.shape[1] + len(Role)
        x = inputs @ self.into[...] + self.role[...][batch.role.astype(jnp.int32)]
        x = x + self.place[...][jnp.minimum(layout.places(batch), MAX_OFFSET - 1)]
        question = (batch.role == Role.QUESTION).astype(jnp.float32)
        relevance = jnp.broadcast_to(question[..., None], (*group.shape, self.config.heads))
        for number in range(self.config.depth):
            x, relevance = getattr(self, f"block{number}")(x, relevance, inputs, group, groups, read)
        return x
