"""Retrieval that does not say the same twice: maximal marginal relevance.

Carbonell & Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing Summaries"
(SIGIR 1998): of the segments not yet chosen, R \\ S, the next one is

    argmax_{d in R \\ S}  lambda sim(d, question) - (1 - lambda) max_{e in S} sim(d, e),

the maximum over nothing being 0. Both similarities are cosines of the embeddings of `rcp.policies.embedding`; the
ranking goes on to the last segment, so that it serves every budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.layout import segment_exists
from rcp.nn.pruner import Scores
from rcp.policies.base import spread_segments
from rcp.policies.embedding import PiecePolicy, unit_embeddings
from rcp.types import Batch


def marginal_ranks(
    relevance: Float[Array, "batch segments"],
    similarity: Float[Array, "batch segments segments"],
    there: Bool[Array, "batch segments"],
    trade: float,
) -> Int[Array, "batch segments"]:
    """The step at which the greedy ranking takes each segment; those that are not `there` come last. O(segments^2)."""
    count = relevance.shape[1]
    numbers = jnp.arange(count, dtype=jnp.int32)[None]

    def step(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rank, nearest = carry
        redundancy = jnp.where(number == 0, 0.0, nearest)
        value = trade * relevance - (1 - trade) * redundancy
        value = jnp.where(rank < count, -jnp.inf, jnp.where(there, value, -1e30))
        pick = jnp.argmax(value, axis=1).astype(jnp.int32)[:, None]
        to_pick = jnp.take_along_axis(similarity, pick[..., None], axis=1)[:, 0]
        return jnp.where(numbers == pick, number, rank), jnp.maximum(nearest, to_pick)

    start = (jnp.full(relevance.shape, count, jnp.int32), jnp.full(relevance.shape, -jnp.inf, jnp.float32))
    return jax.lax.fori_loop(0, count, step, start)[0]


@jax.jit
def _scores(pieces: Array, batch: Batch, trade: float) -> Scores:
    segments, question = unit_embeddings(pieces, batch)
    relevance = jnp.einsum("bsd,bd->bs", segments, question)
    similarity = jnp.einsum("bsd,btd->bst", segments, segments)
    ranks = marginal_ranks(relevance, similarity, segment_exists(batch), trade)
    return spread_segments(-ranks.astype(jnp.float32), batch)


@dataclass(frozen=True)
class Mmr(PiecePolicy):
    """Segments by maximal marginal relevance; scores are ranks. `trade` is lambda: 1 is the policy "embedding"."""

    name = "mmr"
    trade: float = 0.5

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _scores(self.states(batch), batch, self.trade)
