"""Retrieval by meaning: segments whose embedding is near the question's.

What dense retrieval does (Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", arXiv
2004.04906), with the reader itself as the encoder.

Departures: no encoder is trained. A piece is embedded as the mean over its tokens of the frozen reader's hidden states
after one layer, each piece read apart from the others (`rcp.nn.pieces`), and only once where it comes again
(`rcp.nn.sight`); and embeddings are centred over the pieces of the prompt, since what all of them share is most of a
language model's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rcp.nn.layout import segment_exists
from rcp.nn.pieces import mean_states
from rcp.nn.pruner import Granularity, Scores
from rcp.nn.sight import PieceStates
from rcp.policies.base import Policy, spread_segments
from rcp.types import Batch


def unit_embeddings(
    pieces: Float[Array, "batch pieces dim"], batch: Batch
) -> tuple[Float[Array, "batch segments dim"], Float[Array, "batch dim"]]:
    """Of the segments and of the question (the last piece), centred, of length 1, so that products are cosines.

    0 where there is no segment.
    """
    there = jnp.pad(segment_exists(batch), ((0, 0), (0, 1)), constant_values=True)[..., None]
    count = jnp.sum(there, axis=1, keepdims=True, dtype=jnp.float32)
    centred = jnp.where(there, pieces - jnp.sum(jnp.where(there, pieces, 0.0), axis=1, keepdims=True) / count, 0.0)
    # The bound keeps a prompt whose pieces are all alike from a division by 0: its cosines are then 0.
    unit = centred * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(centred), axis=-1, keepdims=True), 1e-12))
    return unit[:, :-1], unit[:, -1]


@dataclass(frozen=True)
class PiecePolicy(Policy):
    """A policy that compares pieces by their embeddings. `look(batch)`: their states; `seen`: those of one batch."""

    granularity: ClassVar[Granularity | None] = "segment"
    layer: int | None = None
    look: Callable[[Batch], Any] | None = field(default=None, repr=False)
    seen: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, model: Any, *, layer: int | None = None, **options: Any) -> Self:
        """The policy with this reader (a `rcp.nn.transformer.Transformer`), through so many of its layers."""
        stop = max(1, model.config.n_layers // 2) if layer is None else layer
        graph, state = nnx.split(model)

        def states(state: Any, tokens: Array, lengths: Array) -> Array:
            return mean_states(nnx.merge(graph, state), tokens, lengths, stop)

        return cls(layer=layer, look=PieceStates(partial(jax.jit(states), state)), **options)

    def looking_at(self, batch: Batch, *, anew: bool = False) -> Self:
        assert isinstance(self.look, PieceStates)
        if anew:
            self.look.forget()
        return replace(self, seen=self.look(batch))

    def states(self, batch: Batch) -> Float[Array, "batch pieces dim"]:
        """Of every segment and, last, of the question."""
        assert self.look is not None
        return self.look(batch) if self.seen is None else self.seen


@jax.jit
def _scores(pieces: Array, batch: Batch) -> Scores:
    segments, question = unit_embeddings(pieces, batch)
    return spread_segments(jnp.einsum("bsd,bd->bs", segments, question), batch)


@dataclass(frozen=True)
class Embedding(PiecePolicy):
    """Segments by the cosine of their embedding and the question's."""

    name = "embedding"

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _scores(self.states(batch), batch)
