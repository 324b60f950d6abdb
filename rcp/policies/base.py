"""What every comparison shares: a score for each context token and segment, and the tokens it may spend.

A policy says what to keep *first*. The pruner's own code (`rcp.nn.pruner.prune`) then fills the budget from the scores
of whichever policy, so that all of them spend exactly the same tokens and honour the same guarantees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rcp.nn.layout import of_segment
from rcp.nn.pruner import Granularity, Scores
from rcp.types import Batch


@dataclass(frozen=True)
class Policy:
    """Base of all policies. `name` is how tables call it.

    `granularity` None prunes at the granularity of the pruner it is compared with; else the policy insists on its own.
    `swept` is False where the budget makes no difference to the policy, which is then evaluated once. `needs_budget` is
    True where the scores themselves depend on it, and are then computed once a budget; other policies ignore theirs.
    `draws` is True where the scores depend on `key`.
    """

    name: ClassVar[str] = ""
    granularity: ClassVar[Granularity | None] = None
    swept: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def looking_at(self, batch: Batch, *, anew: bool = False) -> Self:
        """The policy with what it needs to know of a batch whatever the budget, where that is worth keeping.

        Its `scores` of that batch are the same, and cheaper. `anew`: nothing that earlier batches left is used.
        """
        return self

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        """Logits of keeping: `tokens` float32 [batch, tokens] and `segments` float32 [batch, segments], higher first.

        Deterministic given `batch`, `key` and `budget` (context tokens to keep, int32 [batch], may be traced); entries
        outside the context are ignored.
        """
        raise NotImplementedError

    def spend(self, batch: Batch, budget: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """Context tokens [batch] that the policy spends of `budget`: all of it, unless the policy says otherwise."""
        return budget


@dataclass(frozen=True)
class ReaderPolicy(Policy):
    """A policy that asks the reader, given as an NNX graph definition (hashable, static) and its state."""

    graph: Any = None
    state: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, model: nnx.Module, **options: Any) -> Self:
        """The policy with this reader; `options` are its other fields."""
        graph, state = nnx.split(model)
        return cls(graph=graph, state=state, **options)


def spread_segments(values: Float[Array, "batch segments"], batch: Batch) -> Scores:
    """Scores in which every context token has the score of its segment."""
    return Scores(tokens=of_segment(values, batch).astype(jnp.float32), segments=values.astype(jnp.float32))
