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

from rcp.nn.pruner import Scores
from rcp.nn.transformer import Transformer
from rcp.types import Batch, Role

MAX_OFFSET = 32  # places within a segment that are told apart; later ones share the last
MATCH_DIM = 64  # of the projection in which tokens are compared
SHARPNESS, THRESHOLD = 12.0, 0.6  # of match attention, at the start


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
    order, valid = question_first(batch)
    hidden = model.hidden(jnp.take_along_axis(batch.tokens, order, axis=1), valid=valid, stop=layer)
    return jnp.take_along_axis(hidden, jnp.argsort(order, axis=1)[..., None], axis=1)


def _normal(rngs: nnx.Rngs, *shape: int, scale: float | None = None) -> nnx.Param:
    """Normal weights of deviation `scale`; None: 1 / sqrt(inputs), the last but one axis."""
    deviation = float(shape[-2]) ** -0.5 if scale is None else scale
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))


def _layer_norm(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)


def _unit(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _masked_mean(x: Float[Array, "batch tokens dim"], mask: Bool[Array, "batch tokens"]) -> Float[Array, "batch 1 dim"]:
    weight = mask.astype(jnp.float32)[..., None]
    return jnp.sum(x * weight, axis=1, keepdims=True) / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)


class Block(nnx.Module):
    """Match attention between segments, attention within a segment, MLP; each added to the residual stream."""

    def __init__(self, inputs: int, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.match = _normal(rngs, heads, inputs, MATCH_DIM)
        self.sharpness = nnx.Param(jnp.full((heads,), SHARPNESS))
        self.threshold = nnx.Param(jnp.full((heads,), THRESHOLD))
        self.match_value = _normal(rngs, width, width)
        self.match_out = _normal(rngs, width, width, scale=0.5 * width**-0.5)
        self.relevance_in = _normal(rngs, 2 * heads, width, scale=1.0)
        self.qkv = _normal(rngs, width, 3 * width)
        self.out = _normal(rngs, width, width, scale=0.5 * width**-0.5)
        self.up = _normal(rngs, width, 2 * width)
        self.down = _normal(rngs, 2 * width, width, scale=0.5 * (2 * width) ** -0.5)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        relevance: Float[Array, "batch tokens heads"],
        inputs: Float[Array, "batch tokens inputs"],
        same: Bool[Array, "batch tokens tokens"],
        valid: Bool[Array, "batch tokens"],
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens heads"]]:
        """`same`: which tokens belong to one group. Returns the new stream and the new relevance, in [0, 1]."""
        split = (*x.shape[:2], self.heads, -1)
        match = self._match(inputs, ~same & valid[:, None, :])
        value = (_layer_norm(x) @ self.match_value[...]).reshape(split)
        x = x + jnp.einsum("bhts,bshd->bthd", match, value).reshape(x.shape) @ self.match_out[...]

        reached = jnp.einsum("bhts,bsh->bth", match, relevance)
        spread = 1.0 - jnp.exp(-jnp.einsum("bts,bsh->bth", (same & valid[:, None, :]).astype(jnp.float32), reached))
        x = x + jnp.concatenate([reached, spread], axis=-1) @ self.relevance_in[...]

        q, k, v = jnp.split(_layer_norm(x) @ self.qkv[...], 3, axis=-1)
        q, k, v = q.reshape(split), k.reshape(split), v.reshape(split)
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
        scores = jnp.where((same & valid[:, None, :])[:, None], scores, -1e9)
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v)
        x = x + mixed.reshape(x.shape) @ self.out[...]
        x = x + jax.nn.gelu(_layer_norm(x) @ self.up[...]) @ self.down[...]
        return x, jnp.maximum(relevance, spread)

    def _match(self, inputs, allowed) -> Float[Array, "batch heads tokens tokens"]:
        """How much each token attends to those elsewhere that are like it; a softmax with a constant 0 beside them."""
        point = _unit(jnp.einsum("bti,him->bthm", inputs, self.match[...]))
        cosine = jnp.einsum("bthm,bshm->bhts", point, point)
        logits = self.sharpness[...][None, :, None, None] * (cosine - self.threshold[...][None, :, None, None])
        mass = jnp.where(allowed[:, None], jnp.exp(logits), 0.0)
        return mass / (1.0 + jnp.sum(mass, axis=-1, keepdims=True))


class Scorer(nnx.Module):
    """See the module. Scores start near 0: before training every subset is as likely as any other."""

    def __init__(self, config: ScorerConfig, rngs: nnx.Rngs):
        self.config = config
        width, inputs = config.width, config.inputs
        if config.kind == "standalone":
            self.embedding = _normal(rngs, inputs, width, scale=1.0)
            inputs = width
        if config.kind == "mlp":
            self.first = _normal(rngs, 3 * inputs, width)
            self.second = _normal(rngs, width, width)
        else:
            self.into = _normal(rngs, inputs, width)
            self.role = _normal(rngs, len(Role), width, scale=0.5)
            self.place = _normal(rngs, MAX_OFFSET, width, scale=0.5)
            for number in range(config.depth):
                setattr(self, f"block{number}", Block(inputs, width, config.heads, rngs))
        self.token_head = _normal(rngs, width, 1, scale=0.01)
        self.segment_head = _normal(rngs, width, 1, scale=0.01)

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
        inputs = _layer_norm(features)
        x = self._mlp(inputs, batch) if self.config.kind == "mlp" else self._transformer(inputs, batch, read)
        x = _layer_norm(x)
        tokens = (x @ self.token_head[...])[..., 0]
        segments = self._pool(x, batch) @ self.segment_head[...]
        scale = self.config.width**0.5
        return Scores(scale * tokens, scale * segments[..., 0])

    def _mlp(self, inputs: Any, batch: Batch) -> Float[Array, "batch tokens width"]:
        question = _masked_mean(inputs, batch.role == Role.QUESTION)
        joint = [inputs, inputs * question, jnp.broadcast_to(question, inputs.shape)]
        return jax.nn.gelu(jnp.concatenate(joint, axis=-1) @ self.first[...]) @ self.second[...]

    def _transformer(self, inputs: Any, batch: Batch, read: Any) -> Float[Array, "batch tokens width"]:
        # Segments, and beside them the question and the instruction, each one group.
        group = jnp.where(batch.role == Role.CONTEXT, batch.segment, -batch.role.astype(jnp.int32) - 1)
        same = group[:, :, None] == group[:, None, :]
        fresh = jnp.concatenate([jnp.ones_like(group[:, :1], bool), group[:, 1:] != group[:, :-1]], axis=1)
        index = jnp.arange(group.shape[1], dtype=jnp.int32)[None]
        offset = index - jax.lax.cummax(jnp.where(fresh, index, 0), axis=1)
        x = inputs @ self.into[...] + self.role[...][batch.role.astype(jnp.int32)]
        x = x + self.place[...][jnp.minimum(offset, MAX_OFFSET - 1)]
        question = (batch.role == Role.QUESTION).astype(jnp.float32)
        relevance = jnp.broadcast_to(question[..., None], (*group.shape, self.config.heads))
        for number in range(self.config.depth):
            x, relevance = getattr(self, f"block{number}")(x, relevance, inputs, same, read)
        return x

    @staticmethod
    def _pool(x: Any, batch: Batch) -> Float[Array, "batch segments width"]:
        segments = jnp.arange(batch.support.shape[1], dtype=jnp.int32)[None, None]
        member = ((batch.segment[..., None] == segments) & (batch.role == Role.CONTEXT)[..., None]).astype(jnp.float32)
        return jnp.einsum("bts,btd->bsd", member, x) / jnp.maximum(jnp.sum(member, axis=1), 1.0)[..., None]
