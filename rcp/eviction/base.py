"""What every eviction policy shares: what it may look at, and its scores of the entries of one layer.

A policy says which key-value pairs to keep *first*. How many, and how the budget is shared out between layers and
heads, is decided by the code that all policies go through (`rcp.eviction.select`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rcp.eviction.allotment import UNIFORM, Allotment


@dataclass(frozen=True)
class Needs:
    """What has to be gathered while a prompt is read, since it is gone afterwards.

    Attributes:
      window: the queries of this many last tokens.
      received: the attention that each entry received from all queries of the prompt.
      moments: mean and second moment of the queries at this position and later; None: not needed.
      hidden: the normalised layer inputs of all tokens (layers * tokens * model_dim numbers an example).
      reconstruction: the attention that each entry receives while the prompt is repeated; see its policy.
    """

    window: int = 0
    received: bool = False
    moments: int | None = None
    hidden: bool = False
    reconstruction: bool = False


def all_needs(*needs: Needs) -> Needs:
    """What serves several policies at once, so that a prompt is read once for all of them.

    Raises:
      ValueError: two policies want moments from different positions.
    """
    first = {need.moments for need in needs} - {None}
    if len(first) > 1:
        raise ValueError(f"moments of queries are gathered from one position, not {sorted(map(str, first))}")
    return Needs(
        window=max((need.window for need in needs), default=0),
        received=any(need.received for need in needs),
        moments=first.pop() if first else None,
        hidden=any(need.hidden for need in needs),
        reconstruction=any(need.reconstruction for need in needs),
    )


class Statistics(NamedTuple):
    """What was gathered in a layer; None where it was not asked for. Stacked, every array has a leading layers axis.

    Attributes:
      queries: rotated queries of the last tokens, the newest at the end. query_position: theirs; -1: there is none.
      received: sum over queries, mean over the query heads of a group, of attention weights.
      query_count, query_sum, query_outer: of queries before the rotary embedding: how many, their sum and the sum of
        their outer products.
      hidden: normalised layer inputs.
      reconstruction: maximum over queries and query heads of a group, of attention weights in repeating the prompt.
    """

    queries: Float[Array, "batch window heads dim"] | None = None
    query_position: Int[Array, "batch window"] | None = None
    received: Float[Array, "batch kv_heads entries"] | None = None
    query_count: Float[Array, " batch"] | None = None
    query_sum: Float[Array, "batch heads dim"] | None = None
    query_outer: Float[Array, "batch heads dim dim"] | None = None
    hidden: Float[Array, "batch entries model_dim"] | None = None
    reconstruction: Float[Array, "batch kv_heads entries"] | None = None


class Seen(NamedTuple):
    """What one layer has after (a chunk of) prefill. Every head's entries stand in reading order.

    Attributes:
      k, v: rotated keys, and values, as cached. `frequencies` of the rotary embedding turn keys back, if need be.
      position: rotary position of each key. valid: False at slots not in use.
      next: position of the token that comes next.
      question: entries of the question, or None where they are not known.
      layer: number of the layer.
    """

    k: Float[Array, "batch entries kv_heads dim"]
    v: Float[Array, "batch entries kv_heads dim"]
    position: Int[Array, "batch entries kv_heads"]
    valid: Bool[Array, "batch entries kv_heads"]
    next: Int[Array, " batch"]
    question: Bool[Array, "batch entries"] | None
    statistics: Statistics
    frequencies: Float[Array, " half"]
    layer: Int[Array, ""]

    @property
    def context_end(self) -> Int[Array, " batch"]:
        """Position behind the context: of the question's first token, or of what comes next where there is none."""
        if self.question is None:
            return self.next
        return self.next - jnp.sum(self.question, axis=1, dtype=jnp.int32)


@dataclass(frozen=True)
class EvictionPolicy:
    """Base of all policies. `name` is how tables call it.

    `allotment` is how its authors share a budget out, and may be overruled. `swept` is False where the budget makes no
    difference. `needs_budget`: the scores themselves depend on the budget. `draws`: they depend on `keys`.
    """

    name: ClassVar[str] = ""
    allotment: ClassVar[Allotment] = UNIFORM
    swept: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    @property
    def needs(self) -> Needs:
        return Needs()

    @property
    def asks(self) -> bool:
        """Whether it can score nothing without a question that was read with the context."""
        return False

    @property
    def streams(self) -> bool:
        """Whether it can score a cache in which heads already hold different tokens (`rcp.eviction.stream`)."""
        return self.swept and not (self.needs.reconstruction or self.needs.hidden)

    def scores(
        self, seen: Seen, *, budget: Int[Array, " batch"] | None = None, keys: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch kv_heads entries"]:
        """Scores float32, higher is kept first. What stands at slots not in use is of no account.

        Args:
          budget: entries that a head of this layer may keep, the mean over heads; may be traced.
          keys: one an example.
        """
        raise NotImplementedError


def heads_first(x: Array) -> Array:
    """[batch, entries, kv_heads] as [batch, kv_heads, entries]."""
    return jnp.swapaxes(x, 1, 2)


def age(seen: Seen) -> Int[Array, "batch kv_heads entries"]:
    """How many tokens after its own an entry is old; 0 for the newest."""
    return seen.next[:, None, None] - 1 - heads_first(seen.position)
