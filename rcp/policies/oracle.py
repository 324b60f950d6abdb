"""Oracles: what a pruner would keep that knew which segments the answer needs, or the answer itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rcp.nn.gains import Read, gains_beside
from rcp.nn.layout import of_segment, segment_exists
from rcp.nn.pruner import Scores
from rcp.nn.reader import read
from rcp.policies.base import Policy, ReaderPolicy, spread_segments
from rcp.types import Batch


@dataclass(frozen=True)
class Oracle(Policy):
    """Needed segments first, the others by place; by place alone where the task does not know the support."""

    name = "oracle"
    granularity = "segment"

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        support = jnp.asarray(batch.support)
        segments = support.shape[1]
        place = jnp.arange(segments, dtype=jnp.float32)
        return spread_segments(jnp.where(support == 1, float(segments), 0.0) - place[None], batch)


def _reader(graph: Any, state: Any, max_answer: int) -> Read:
    model = nnx.merge(graph, state)
    return lambda prompts: read(model, prompts, max_answer=max_answer)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _alone(graph: Any, state: Any, batch: Batch, length: int, max_answer: int) -> Scores:
    none = jnp.zeros(batch.role.shape, bool)
    return spread_segments(gains_beside(none, batch, _reader(graph, state, max_answer), length), batch)


@dataclass(frozen=True)
class Alone(ReaderPolicy):
    """Segments by -NLL of the *gold* answer with that segment as the whole context: for tasks that know no support.

    It cheats: it reads the answer. No method that does not can be asked to reach it, and none need stay below it, since
    what helps alone need not help together.

    `length`: static, holds any prompt with one segment; `max_answer`: static bound on answer tokens.
    """

    name = "alone"
    granularity = "segment"
    length: int = 0
    max_answer: int = 0

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _alone(self.graph, self.state, batch, self.length, self.max_answer)


def greedy_ranks(batch: Batch, answer: Read, lengths: tuple[int, ...]) -> Int[Array, "batch segments"]:
    """Places in the order of a greedy forward search of `len(lengths)` steps, the remaining segments by `Alone`.

    Each step adds the segment beside which, with those chosen before, the gold answer is likeliest; the first step is
    `Alone` itself. Chosen segments stand in the prompt's order. Reads steps * segments prompts an example.

    Args:
      lengths: static; the n-th holds any prompt with n segments.
    """
    count, there = batch.support.shape[1], segment_exists(batch)
    unranked = len(lengths) + count
    rank = jnp.full(there.shape, unranked, jnp.int32)
    alone: Float[Array, "batch segments"] = jnp.zeros(there.shape, jnp.float32)
    for step, length in enumerate(lengths):
        gains = gains_beside(of_segment(rank < unranked, batch), batch, answer, length)
        alone = gains if step == 0 else alone
        left = there & (rank == unranked)
        pick = jnp.argmax(jnp.where(left, gains, -jnp.inf), axis=1).astype(jnp.int32)[:, None]
        rank = jnp.where(left & (jnp.arange(count, dtype=jnp.int32)[None] == pick), step, rank)
    by_alone = jnp.argsort(jnp.where(there, -alone, jnp.inf), axis=1)
    rest = len(lengths) + jnp.argsort(by_alone, axis=1).astype(jnp.int32)
    return jnp.where(rank < unranked, rank, rest)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _greedy(graph: Any, state: Any, batch: Batch, lengths: tuple[int, ...], max_answer: int) -> Scores:
    ranks = greedy_ranks(batch, _reader(graph, state, max_answer), lengths)
    return spread_segments(-ranks.astype(jnp.float32), batch)


@dataclass(frozen=True)
class Greedy(ReaderPolicy):
    """Segments by greedy forward search on the *gold* answer's NLL; see `greedy_ranks`. It cheats, as `Alone` does.

    Unlike `Alone` it sees what segments do together (two hops, two that say the same), for as many as it searches.
    """

    name = "greedy"
    granularity = "segment"
    lengths: tuple[int, ...] = ()
    max_answer: int = 0

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _greedy(self.graph, self.state, batch, self.lengths, self.max_answer)
