"""What every comparison shares: a score for each context token and segment, and the tokens it may spend.

A policy says what to keep *first*. The pruner's own code (`rcp.nn.pruner.prune`) then fills the budget from the scores
of whichever policy, so that all of them spend exactly the same tokens and honour the same guarantees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rcp.nn.pruner import Granularity, Scores
from rcp.types import Batch, Role


@dataclass(frozen=True)
class Policy:
    """Base of all policies. `name` is how tables call it.

    `granularity` None prunes at the granularity of the pruner it is compared with; else the policy insists on its own.
    `swept` is False where the budget makes no difference to the policy, which is then evaluated once.
    """

    name: ClassVar[str] = ""
    granularity: ClassVar[Granularity | None] = None
    swept: ClassVar[bool] = True

    def scores(self, batch: Batch, *, key: Array) -> Scores:
        """Logits of keeping: `tokens` float32 [batch, tokens] and `segments` float32 [batch, segments], higher first.

        Deterministic given `batch` and `key`; entries outside the context are ignored.
        """
        raise NotImplementedError

    def spend(self, batch: Batch, budget: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """Context tokens [batch] that the policy spends of `budget`: all of it, unless the policy says otherwise."""
        return budget


def context_tokens(batch: Batch) -> Int[Array, " batch"]:
    """Number of context tokens of each example, int32 [batch]."""
    return jnp.sum(jnp.asarray(batch.role) == Role.CONTEXT, axis=1, dtype=jnp.int32)


def segment_lengths(batch: Batch) -> Int[Array, "batch segments"]:
    """Tokens of each context segment, int32 [batch, segments]; 0 where there is no such segment."""
    numbers = jnp.arange(batch.support.shape[1])
    return jnp.sum(_member(batch, numbers), axis=1, dtype=jnp.int32)


def segment_means(values: Float[Array, "batch tokens"], batch: Batch) -> Float[Array, "batch segments"]:
    """Mean of a per-token value over each context segment, float32 [batch, segments]; 0 where it has no token."""
    member = _member(batch, jnp.arange(batch.support.shape[1]))
    total = jnp.einsum("bt,bts->bs", values, member.astype(jnp.float32))
    return total / jnp.maximum(segment_lengths(batch), 1).astype(jnp.float32)


def spread_segments(values: Float[Array, "batch segments"], batch: Batch) -> Scores:
    """Scores in which every context token has the score of its segment."""
    tokens = jnp.take_along_axis(values, jnp.clip(jnp.asarray(batch.segment), 0, values.shape[1] - 1), axis=1)
    return Scores(tokens=tokens.astype(jnp.float32), segments=values.astype(jnp.float32))


def _member(batch: Batch, numbers: Int[Array, " segments"]) -> Array:
    """Whether a context token [batch, tokens, 1] belongs to segment [segments]."""
    context = jnp.asarray(batch.role) == Role.CONTEXT
    return (jnp.asarray(batch.segment)[..., None] == numbers[None, None]) & context[..., None]
