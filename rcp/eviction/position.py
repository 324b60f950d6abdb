"""Policies that look at positions alone: keep all, at random, sinks and the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rcp.eviction.base import EvictionPolicy, Seen, age, heads_first


@dataclass(frozen=True)
class Full(EvictionPolicy):
    """Keeps everything."""

    name: ClassVar[str] = "full"
    swept: ClassVar[bool] = False

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        return jnp.zeros(heads_first(seen.valid).shape, jnp.float32)


@dataclass(frozen=True)
class Random(EvictionPolicy):
    """Uniform noise, other in every layer and head. It depends on the example's key alone, not on batch or padding."""

    name: ClassVar[str] = "random"
    draws: ClassVar[bool] = True

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        if keys is None:
            raise ValueError("random eviction needs keys, one an example")
        _, entries, heads = seen.valid.shape

        def of_head(key: Array, head: Array) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(key, seen.layer), head)
            return jax.random.uniform(key, (entries,))

        numbers = jnp.arange(heads, dtype=jnp.int32)
        return jax.vmap(lambda key: jax.vmap(lambda head: of_head(key, head))(numbers))(keys)


@dataclass(frozen=True)
class SinksWindow(EvictionPolicy):
    """StreamingLLM (Xiao et al., arXiv 2309.17453): the first `sinks` tokens, then the newest.

    The paper also counts positions within the cache: that is `repack` of the compaction, which any policy may have.
    """

    name: ClassVar[str] = "sinks_window"
    sinks: int = 4

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        position = heads_first(seen.position)
        first = seen.next[:, None, None] + self.sinks - position  # above every position, the very first highest
        return jnp.where(position < self.sinks, first, position).astype(jnp.float32)


def newest_first(seen: Seen, scores: Array, window: int) -> Float[Array, "batch kv_heads entries"]:
    """Scores, at most 1, with the last `window` tokens' entries ranked above all others, the newest first."""
    old = age(seen)
    return jnp.where(old < window, 2.0 - old.astype(jnp.float32) / max(window, 1), scores)
