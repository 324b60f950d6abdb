"""Retrieval by meaning: segments whose embedding is near the question's.

What dense retrieval does (Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", arXiv
2004.04906), with the reader itself as the encoder.

Departures: no encoder is trained. A piece is embedded as the mean over its tokens of the frozen reader's hidden states
after one layer, each piece read apart from the others, so that nothing crosses between them (`rcp.nn.pieces`); and
embeddings are centred over the pieces of the prompt, since what all of them share is most of a language model's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rcp.nn.layout import segment_exists
from rcp.nn.pieces import piece_states
from rcp.nn.pruner import Scores
from rcp.policies.base import ReaderPolicy, spread_segments
from rcp.types import Batch


def embed_pieces(
    model: Any, batch: Batch, layer: int | None, length: int
) -> tuple[Float[Array, "batch segments dim"], Float[Array, "batch dim"]]:
    """Unit embeddings of the segments and of the question, so that products are cosines; 0 where there is no segment.

    Args:
      model: a `rcp.nn.transformer.Transformer`.
      layer: how many of its layers to read through; None for half of them.
      length: static, holds the longest segment and question.
    """
    stop = max(1, model.config.n_layers // 2) if layer is None else layer
    pieces = piece_states(model, batch, stop, length)
    there = jnp.pad(segment_exists(batch), ((0, 0), (0, 1)), constant_values=True)[..., None]
    count = jnp.sum(there, axis=1, keepdims=True, dtype=jnp.float32)
    centred = jnp.where(there, pieces - jnp.sum(jnp.where(there, pieces, 0.0), axis=1, keepdims=True) / count, 0.0)
    # The bound keeps a prompt whose pieces are all alike from a division by 0: its cosines are then 0.
    unit = centred * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(centred), axis=-1, keepdims=True), 1e-12))
    return unit[:, :-1], unit[:, -1]


@partial(jax.jit, static_argnums=(0, 3, 4))
def _scores(graph: Any, state: Any, batch: Batch, layer: int | None, length: int) -> Scores:
    segments, question = embed_pieces(nnx.merge(graph, state), batch, layer, length)
    return spread_segments(jnp.einsum("bsd,bd->bs", segments, question), batch)


@dataclass(frozen=True)
class Embedding(ReaderPolicy):
    """Segments by the cosine of their embedding and the question's; `layer` and `length` as in `embed_pieces`."""

    name = "embedding"
    granularity = "segment"
    layer: int | None = None
    length: int = 0

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _scores(self.graph, self.state, batch, self.layer, self.length)
