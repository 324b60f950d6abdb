"""Policies that look at nothing but places: everything, nothing, a shorter prompt, the beginning, the end."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Int

from rcp.nn.layout import context_tokens, free_lengths
from rcp.nn.pruner import Scores
from rcp.policies.base import Policy
from rcp.types import Batch


def earliest_first(batch: Batch) -> Scores:
    """Scores by place, the first token and the first segment highest."""
    (rows, tokens), segments = batch.tokens.shape, batch.support.shape[1]
    return Scores(
        tokens=jnp.broadcast_to(-jnp.arange(tokens, dtype=jnp.float32), (rows, tokens)),
        segments=jnp.broadcast_to(-jnp.arange(segments, dtype=jnp.float32), (rows, segments)),
    )


@dataclass(frozen=True)
class Full(Policy):
    """The whole context, whatever the budget: what the model does when it is left alone."""

    name = "full"
    swept = False

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return earliest_first(batch)

    def spend(self, batch: Batch, budget: Int[Array, " batch"]) -> Int[Array, " batch"]:
        return context_tokens(batch)


@dataclass(frozen=True)
class NoContext(Policy):
    """Instruction and question only: what the model knows without any context."""

    name = "none"
    swept = False

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return earliest_first(batch)

    def spend(self, batch: Batch, budget: Int[Array, " batch"]) -> Int[Array, " batch"]:
        return jnp.zeros_like(context_tokens(batch))


@dataclass(frozen=True)
class Shorter(Policy):
    """The prompt one would write for the budget: whole segments in the given order while they fit, none truncated.

    Forced tokens, of whichever segment, come first. It may spend less than the budget; tables report what it kept.
    """

    name = "shorter"
    granularity = "segment"

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return earliest_first(batch)

    def spend(self, batch: Batch, budget: Int[Array, " batch"]) -> Int[Array, " batch"]:
        free, budget = free_lengths(batch), jnp.asarray(budget)[:, None]
        forced = context_tokens(batch)[:, None] - jnp.sum(free, axis=1, keepdims=True, dtype=jnp.int32)
        ends = jnp.concatenate([forced, forced + jnp.cumsum(free, axis=1, dtype=jnp.int32)], axis=1)
        return jnp.max(jnp.where(ends <= budget, ends, 0), axis=1).astype(jnp.int32)


@dataclass(frozen=True)
class First(Policy):
    """Exactly the first k tokens of the context."""

    name = "first"
    granularity = "token"

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return earliest_first(batch)


@dataclass(frozen=True)
class Last(Policy):
    """Exactly the last k tokens of the context: what truncation from the left leaves."""

    name = "last"
    granularity = "token"

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        earliest = earliest_first(batch)
        return Scores(tokens=-earliest.tokens, segments=-earliest.segments)
