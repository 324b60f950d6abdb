"""Context and question -> logits of keeping each context token and segment.

What makes a segment needed is rarely what it says by itself: it shares a name with the question, or with a segment that
does. The transformer scorers therefore have, beside ordinary attention within a segment, *match attention* between
segments: its weights depend only on how similar two tokens' inputs are (a cosine in a learned projection, shared by
query and key), with a learned threshold below which a token attends to nothing. So "the same name" is seen for names
that never occurred in training, and one block is one hop: match a token elsewhere, spread what it brought over the
segment. Along these paths goes a *relevance*, 1 on the question at first: a word that many segments share passes on
little of it (the weights of a token sum to less than 1), a rare one much, as in BM25; and each block carries it one
segment further.

What makes a worked example helpful is another thing: how it is written, and whether that suits the question. The
"pooled" scorer looks at each segment's mean state and length beside the question's state, and learns from a few hundred
problems. The "linear" one is a linear function of the same, of the question's state only how like it a segment's is:
where labels are mostly noise it learns more from as many. A segment's tokens have its score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rcp.nn import layout
from rcp.nn.encoder import EncoderBlock
from rcp.nn.match import Block, layer_norm, normal
from rcp.nn.pruner import Scores
from rcp.nn.transformer import Transformer
from rcp.types import Batch, Role

POOLED = ("pooled", "linear")
"""Kinds that see one state a segment."""
MAX_OFFSET = 32  # places within a segment that are told apart; later ones share the last


@dataclass(frozen=True)
class ScorerConfig:
    """Attributes:
    kind: "hidden": match-attention transformer on the model's hidden states; "mlp": per-token MLP on them and on the
      question's mean; "pooled": MLP on a segment's mean state and length and the question's state; "linear": linear in
      a segment's mean state, its length and its likeness to the question, no `width`; "standalone": the
      transformer on token embeddings of its own, which needs no model; "llmlingua2": a bidirectional encoder on the
      hidden states, blind to the question (`rcp.nn.encoder`).
    inputs: width of the hidden states, or vocabulary of the standalone scorer.
    width, depth, heads: of the transformer (heads of each of the two kinds of attention).
    budget: whether the scores depend on the budget, as the share of the context's tokens to keep.
    apart: whether `POOLED` kinds see pieces that were read each by itself (`rcp.nn.pieces`) or in their prompt.
    groups: of how many groups of prompts (`Batch.group`) the "linear" kind is told which a prompt is of: each has
      weights of its own on the states, beside those that all share. 1: it is not told.
    products: whether the "linear" kind also sees the products of a segment's state and the question's, place by place:
      its weights on them are a learned measure of likeness.
    """

    kind: Literal["hidden", "mlp", "pooled", "linear", "standalone", "llmlingua2"]
    inputs: int
    width: int = 128
    depth: int = 2
    heads: int = 4
    budget: bool = False
    apart: bool = False
    groups: int = 1
    products: bool = False


def question_first(batch: Batch) -> tuple[Int[Array, "batch tokens"], Bool[Array, "batch tokens"]]:
    """The order in which the scorer's model reads: question, instruction, context; and which of these places are real.

    A causal model then reads every context token knowing the question. The answer is not read.
    """
    rank = jnp.full(batch.role.shape, 3, jnp.int32)
    for place, role in enumerate((Role.QUESTION, Role.INSTRUCTION, Role.CONTEXT)):
        rank = jnp.where(batch.role == role, place, rank)
    order = jnp.argsort(rank, axis=1, stable=True).astype(jnp.int32)
    return order, jnp.take_along_axis(rank, order, axis=1) < 3


def early_features(
    model: Transformer, batch: Batch, layer: int, *, blind: bool = False
) -> Float[Array, "batch tokens dim"]:
    """The model's hidden states after `layer` layers, read question first, put back in the prompt's own order.

    `blind`: read in the prompt's order instead, so that states of the context know nothing of the question behind it.
    """
    if blind:
        return model.hidden(batch.tokens, lengths=layout.prompt_lengths(batch), stop=layer)
    order, there = question_first(batch)
    lengths = jnp.sum(there, axis=1, dtype=jnp.int32)
    hidden = model.hidden(jnp.take_along_axis(batch.tokens, order, axis=1), lengths=lengths, stop=layer)
    return jnp.take_along_axis(hidden, jnp.argsort(order, axis=1)[..., None], axis=1)


def piece_features(model: Transformer, batch: Batch, layer: int) -> Float[Array, "batch pieces dim"]:
    """What `POOLED` scorers see: mean early states (`early_features`) of every segment and, last, of the question.

    They depend on the example and the frozen model alone, so that they can be computed once for a whole training set.
    """
    states = _centred(early_features(model, batch, layer), _read(batch))
    question = _masked_mean(states, batch.role == Role.QUESTION)
    return jnp.concatenate([layout.segment_means(states, batch), question], axis=1)


def _centred(
    states: Float[Array, "batch tokens dim"], read: Bool[Array, "batch tokens"]
) -> Float[Array, "batch tokens dim"]:
    """States less what all tokens that are `read` have in common, a large part which tells nothing; at scale 1."""
    return layer_norm(states - _masked_mean(states, read))


def _relative(
    pieces: Float[Array, "batch pieces dim"], there: Bool[Array, "batch segments"]
) -> Float[Array, "batch pieces dim"]:
    """States less the segments' mean, scaled so that the segments' have unit mean square; the last is no segment's."""
    moved = pieces - _masked_mean(pieces[:, :-1], there)
    square = _masked_mean(jnp.mean(jnp.square(moved[:, :-1]), axis=-1, keepdims=True), there)
    return moved * jax.lax.rsqrt(square + 1e-8)


def _read(batch: Batch) -> Bool[Array, "batch tokens"]:
    """The tokens that a scorer may look at."""
    return (batch.role != Role.PAD) & (batch.role != Role.ANSWER)


def _masked_mean(x: Float[Array, "batch items dim"], mask: Bool[Array, "batch items"]) -> Float[Array, "batch 1 dim"]:
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
        elif config.kind == "pooled":
            self.into, self.question = normal(rngs, inputs, width), normal(rngs, inputs, width)
            self.first = normal(rngs, 2 * width, width)
            self.second = normal(rngs, width, width, scale=0.5 * width**-0.5)
            self.size = normal(rngs, 1, width, scale=0.5)
        elif config.kind == "linear":
            width = 1
            self.into = normal(rngs, inputs, 1, scale=0.01 * inputs**-0.5)
            self.size, self.alike = normal(rngs, 1, 1, scale=0.01), normal(rngs, 1, 1, scale=0.01)
            if config.products:
                self.product = nnx.Param(jnp.zeros((inputs, 1), jnp.float32))
            if config.groups > 1:
                self.of_group = nnx.Param(jnp.zeros((config.groups, inputs), jnp.float32))
        elif config.kind == "llmlingua2":
            self.into = normal(rngs, inputs, width)
            for number in range(config.depth):
                setattr(self, f"block{number}", EncoderBlock(width, config.heads, rngs))
        else:
            self.into = normal(rngs, inputs, width)
            self.role = normal(rngs, len(Role), width, scale=0.5)
            self.place = normal(rngs, MAX_OFFSET, width, scale=0.5)
            for number in range(config.depth):
                setattr(self, f"block{number}", Block(inputs, width, config.heads, rngs))
        if config.kind not in POOLED:
            self.token_head = normal(rngs, width, 1, scale=0.01)
        if config.kind not in ("linear", "llmlingua2"):
            self.segment_head = normal(rngs, width, 1, scale=0.01)
        if config.budget:
            self.budget = normal(rngs, 2, width, scale=0.5 if config.kind != "linear" else 0.01)

    def __call__(
        self,
        batch: Batch,
        features: Float[Array, "batch places inputs"] | None = None,
        budget: Int[Array, " batch"] | None = None,
    ) -> Scores:
        """Scores every context token and segment.

        Args:
          batch: whole prompts; their answers are not looked at.
          features: hidden states of the model at the prompt's places (`early_features`), for `POOLED` those of its
            pieces (`piece_features`, or `rcp.nn.pieces.piece_states`), for "llmlingua2" blind ones; None for
            "standalone".
          budget: context tokens to keep; looked at, and then needed, where the configuration says so.
        """
        share, scale = self._share(batch, budget), self.config.width**0.5
        if self.config.kind == "standalone":
            inputs = layer_norm(jnp.take(self.embedding[...], batch.tokens, axis=0, mode="clip"))
        elif features is None:
            raise ValueError(f'the "{self.config.kind}" scorer needs features')
        elif self.config.kind in POOLED:
            of_segments = self._linear if self.config.kind == "linear" else self._pooled
            segments = of_segments(features, batch, share)
            return Scores(layout.of_segment(segments, batch), segments)
        elif self.config.kind == "llmlingua2":
            tokens = scale * (self._classified(features, batch, share) @ self.token_head[...])[..., 0]
            return Scores(tokens, layout.segment_means(tokens, batch))
        else:
            inputs = _centred(features, _read(batch))
        of_tokens = self._mlp if self.config.kind == "mlp" else self._transformer
        x = layer_norm(of_tokens(inputs, batch, share))
        tokens, segments = x @ self.token_head[...], layout.segment_means(x, batch) @ self.segment_head[...]
        return Scores(scale * tokens[..., 0], scale * segments[..., 0])

    def _share(self, batch: Batch, budget: Int[Array, " batch"] | None) -> Float[Array, "batch 1 width"] | float:
        """What the budget adds to the stream of every token or segment: a projection of the share and its logarithm."""
        if not self.config.budget:
            return 0.0
        if budget is None:
            raise ValueError("this scorer needs the budget")
        context = jnp.maximum(layout.context_tokens(batch), 1).astype(jnp.float32)
        share = jnp.clip(budget.astype(jnp.float32) / context, 1e-3, 1.0)
        return (jnp.stack([share, jnp.log(share)], axis=-1) @ self.budget[...])[:, None]

    def _pieces(self, pieces: Any, batch: Batch) -> tuple[Array, Array, Array]:
        """Mean states and log lengths of the segments, relative to the other segments', and the question's state."""
        there = layout.segment_exists(batch)
        if self.config.apart:  # states of other prompts' pieces are not at hand to say what all have in common
            pieces = _relative(pieces, there)
        size = jnp.log(jnp.maximum(layout.segment_lengths(batch), 1).astype(jnp.float32))[..., None]
        means, size = (x - _masked_mean(x, there) for x in (pieces[:, :-1], size))
        return means, size, pieces[:, -1:]

    def _linear(self, pieces: Any, batch: Batch, share: Any) -> Float[Array, "batch segments"]:
        """Scores; what length is worth hangs on the budget too, where that is looked at."""
        means, size, question = self._pieces(pieces, batch)
        square = jnp.sum(jnp.square(means), axis=-1, keepdims=True) * jnp.sum(jnp.square(question), axis=-1)[..., None]
        alike = jnp.sum(means * question, axis=-1, keepdims=True) * jax.lax.rsqrt(square + 1e-8)
        found = means @ self.into[...] + alike @ self.alike[...] + size * (self.size[...][None] + share)
        if self.config.groups > 1:
            found += means @ self.of_group[...][batch.group][..., None]
        if self.config.products:
            found += (means * question) @ self.product[...]
        return found[..., 0]

    def _pooled(self, pieces: Any, batch: Batch, share: Any) -> Float[Array, "batch segments"]:
        """Scores."""
        means, size, question = self._pieces(pieces, batch)
        own = means @ self.into[...] + size @ self.size[...]
        asked = own * (question @ self.question[...])
        hidden = jax.nn.gelu(jnp.concatenate([own, asked], axis=-1) @ self.first[...] + share)
        x = layer_norm(own + hidden @ self.second[...])
        return self.config.width**0.5 * (x @ self.segment_head[...])[..., 0]

    def _classified(self, features: Any, batch: Batch, share: Any) -> Float[Array, "batch tokens width"]:
        """Of every context token, by what stands before and behind it in the context."""
        context = layout.in_context(batch)
        x = _centred(features, context) @ self.into[...] + share
        for number in range(self.config.depth):
            x = getattr(self, f"block{number}")(x, context)
        return layer_norm(x)

    def _mlp(self, inputs: Any, batch: Batch, share: Any) -> Float[Array, "batch tokens width"]:
        question = _masked_mean(inputs, batch.role == Role.QUESTION)
        joint = [inputs, inputs * question, jnp.broadcast_to(question, inputs.shape)]
        return jax.nn.gelu(jnp.concatenate(joint, axis=-1) @ self.first[...] + share) @ self.second[...]

    def _transformer(self, inputs: Any, batch: Batch, share: Any) -> Float[Array, "batch tokens width"]:
        group, groups = layout.groups(batch), batch.support.shape[1] + len(Role)
        x = inputs @ self.into[...] + self.role[...][batch.role.astype(jnp.int32)] + share
        x = x + self.place[...][jnp.minimum(layout.places(batch), MAX_OFFSET - 1)]
        question = (batch.role == Role.QUESTION).astype(jnp.float32)
        relevance = jnp.broadcast_to(question[..., None], (*group.shape, self.config.heads))
        for number in range(self.config.depth):
            x, relevance = getattr(self, f"block{number}")(x, relevance, inputs, group, groups, _read(batch))
        return x
