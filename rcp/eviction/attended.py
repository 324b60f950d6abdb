"""Policies that keep what was attended to: H2O, TOVA, SnapKV, PyramidKV.

Where several query heads read one key-value head, theirs is the mean over them (as in kvpress), and eviction happens
once after (a chunk of) prefill, as in kvpress, where H2O and TOVA evict token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from rcp.eviction.allotment import PYRAMID, Allotment
from rcp.eviction.base import EvictionPolicy, Needs, Seen, age
from rcp.eviction.position import newest_first
from rcp.eviction.weights import reduce_weights


def window_attention(seen: Seen, window: int) -> Float[Array, "batch kv_heads group entries"]:
    """Attention weights to each entry, mean over the queries of the last `window` tokens; 0 to those tokens' own."""
    queries, position = seen.statistics.queries, seen.statistics.query_position
    if queries is None or position is None or queries.shape[1] < window:
        raise ValueError(f"the queries of the last {window} tokens were not gathered (Needs.window)")
    position = position[:, -window:]
    total = reduce_weights(
        queries[:, -window:],
        seen.k,
        key_order=seen.position,
        key_valid=seen.valid,
        query_order=position,
        query_valid=position >= 0,
        reduce="sum",
    )
    count = jnp.maximum(jnp.sum(position >= 0, axis=1), 1).astype(jnp.float32)
    return jnp.where((age(seen) >= window)[:, :, None], total / count[:, None, None, None], 0.0)


@dataclass(frozen=True)
class TOVA(EvictionPolicy):
    """TOVA (Oren et al., arXiv 2401.06104): the last token's attention, mean over all heads of the layer.

    The last token itself is kept first (as in kvpress; in the paper it competes).
    """

    name: ClassVar[str] = "tova"

    @property
    def needs(self) -> Needs:
        return Needs(window=1)

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        mean = window_attention(seen, 1).mean(axis=(1, 2))
        return newest_first(seen, jnp.broadcast_to(mean[:, None], age(seen).shape), 1)


@dataclass(frozen=True)
class SnapKV(EvictionPolicy):
    """SnapKV (Li et al., arXiv 2404.14469): attention of the last `window` tokens, averaged over neighbours.

    Mean over the window's queries, mean over `kernel` neighbouring entries (zeros beyond the ends), mean over the
    query heads of a group. Defaults are kvpress's. The window is kept first, the newest before (there: ties with the
    best score).
    """

    name: ClassVar[str] = "snapkv"
    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"window={self.window}, kernel={self.kernel}: expected both from 1 on, kernel odd")

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        mean = window_attention(seen, self.window).mean(axis=2)
        half, entries = self.kernel // 2, mean.shape[-1]
        padded = jnp.pad(mean, ((0, 0), (0, 0), (half, half)))
        pooled = sum(padded[:, :, i : i + entries] for i in range(self.kernel)) / self.kernel
        return newest_first(seen, jnp.asarray(pooled), self.window)


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """PyramidKV (Cai et al., arXiv 2406.02069): SnapKV's scores, and more entries for the first layers."""

    name: ClassVar[str] = "pyramidkv"
    allotment: ClassVar[Allotment] = PYRAMID


@dataclass(frozen=True)
class H2O(EvictionPolicy):
    """H2O (Zhang et al., arXiv 2306.14048): entries that received the most attention in all, and the newest.

    A part `recent` of the budget goes to the newest tokens (half in the paper), the rest to the heavy hitters.
    `per_query` divides what an entry received by the number of tokens that could see it: kvpress's "observed
    attention" is that with `recent=0`.
    """

    name: ClassVar[str] = "h2o"
    needs_budget: ClassVar[bool] = True
    recent: float = 0.5
    per_query: bool = False

    @property
    def needs(self) -> Needs:
        return Needs(received=True)

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        received, old = seen.statistics.received, age(seen)
        if received is None:
            raise ValueError("the attention that entries received was not gathered (Needs.received)")
        if self.per_query:
            received = received / jnp.maximum(old + 1, 1).astype(jnp.float32)
        if self.recent == 0:
            return received
        if budget is None:
            raise ValueError("H2O needs the budget, of which a part goes to the newest tokens")
        newest = jnp.floor(self.recent * budget.astype(jnp.float32)).astype(jnp.int32)
        old = old - (seen.next - seen.context_end)[:, None, None]  # a question is kept beside the budget
        above = received.max(axis=(1, 2), keepdims=True) + 1 + (seen.next[:, None, None] - old).astype(jnp.float32)
        return jnp.where(old < newest[:, None, None], above, received)
