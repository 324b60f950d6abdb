"""The key-value cache: a static capacity, a length per example, slots filled from the left without gaps.

A `Context` is what is left of a cache after eviction: each layer and key-value head has kept entries of its own. It is
only read; tokens that come later (a question, an answer) go into an ordinary cache behind it, its *tail*. So one
context serves many tails, and going back to an earlier state of a tail is setting its length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.eight_bit import rounded


class KVCache(NamedTuple):
    """Keys (already rotated) and values of the tokens read so far.

    Slots `0 .. length[b] - 1` of example b are in use, in reading order; padding and dropped tokens take none.
    `position` is the rotary position of the next token, which differs from `length` once tokens have been dropped.
    """

    k: Float[Array, "layers batch capacity kv_heads dim"]
    v: Float[Array, "layers batch capacity kv_heads dim"]
    length: Int[Array, " batch"]
    position: Int[Array, " batch"]

    @property
    def capacity(self) -> int:
        return self.k.shape[2]


class Entries(NamedTuple):
    """Keys (rotated) and values of some consecutive layers; those of a head are its first `length` slots, in order.

    Attributes:
      position: the rotary position that a key was rotated to. Of no meaning at slots not in use.
      keep: in [0, 1], weighs entries in attention as a keep-mask does; None means 1.
      scales: of k and of v, float32; where they are given k and v are int8 and stand for scale * k (`quantised`).
    """

    k: Float[Array, "layers batch capacity kv_heads dim"]
    v: Float[Array, "layers batch capacity kv_heads dim"]
    position: Int[Array, "layers batch capacity kv_heads"]
    length: Int[Array, "layers batch kv_heads"]
    keep: Float[Array, "layers batch capacity kv_heads"] | Bool[Array, "layers batch capacity kv_heads"] | None = None
    scales: (
        tuple[Float[Array, "layers batch capacity kv_heads"], Float[Array, "layers batch capacity kv_heads"]] | None
    ) = None

    @property
    def capacity(self) -> int:
        return self.k.shape[2]


class Context(NamedTuple):
    """The entries of all layers, in runs of consecutive layers that have the same capacity.

    `position` is the rotary position of the token that comes next.
    """

    runs: tuple[Entries, ...]
    position: Int[Array, " batch"]

    @property
    def layers(self) -> int:
        return sum(run.k.shape[0] for run in self.runs)


def empty(
    layers: int, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: jnp.dtype | str = "float32"
) -> KVCache:
    """A cache with no token in it. Memory: 2 * layers * batch * capacity * kv_heads * head_dim numbers."""
    shape = (layers, batch, capacity, kv_heads, head_dim)
    zero = jnp.zeros((batch,), jnp.int32)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), zero, zero)


def append(
    cache: KVCache,
    k: Float[Array, "layers batch tokens kv_heads dim"],
    v: Float[Array, "layers batch tokens kv_heads dim"],
    stored: Bool[Array, "batch tokens"] | None,
    position: Int[Array, " batch"],
    *,
    empty: bool = False,
) -> KVCache:
    """Writes the `stored` tokens (None: all) of each example behind its last one. `empty`: there is none yet.

    The caller sees to it that they fit: writing past the capacity overwrites the last slots.
    """
    count = jnp.int32(k.shape[2])
    if stored is not None:
        if stored.shape[1] > 1:
            order = jnp.argsort(~stored, axis=1, stable=True)  # stored tokens first, in their order
            index = order[None, :, :, None, None]
            k, v = jnp.take_along_axis(k, index, axis=2), jnp.take_along_axis(v, index, axis=2)
        count = stored.sum(axis=1, dtype=jnp.int32)

    if empty:  # the same place in every example: nothing is copied to get at it
        k, v = (lax.dynamic_update_slice(x, y.astype(x.dtype), (0,) * 5) for x, y in ((cache.k, k), (cache.v, v)))
        return KVCache(k, v, cache.length + count, position)

    def write(slots, new, start):  # one example: [L, C, H, d], [L, T, H, d]
        return lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0, start, 0, 0))

    batched = jax.vmap(write, in_axes=(1, 1, 0), out_axes=1)
    return KVCache(batched(cache.k, k, cache.length), batched(cache.v, v, cache.length), cache.length + count, position)


def as_context(cache: KVCache) -> Context:
    """A whole cache as a context, nothing copied. Its tokens have positions 0, 1, 2, ..., as they have by default."""
    layers, batch, capacity, heads, _ = cache.k.shape
    position = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32)[None, None, :, None], cache.k.shape[:4])
    length = jnp.broadcast_to(cache.length[None, :, None], (layers, batch, heads))
    return Context((Entries(cache.k, cache.v, position, length),), cache.position)


def with_slots(x: Array, capacity: int) -> Array:
    """[layers, batch, slots, ...] with empty slots behind the others, `capacity` in all."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, capacity - x.shape[2]), *((0, 0),) * (x.ndim - 3)))


def tail_of(context: Context, capacity: int, dtype: Any = None) -> KVCache:
    """An empty cache for the tokens behind a context. `dtype`: None means that of its keys."""
    k = context.runs[0].k
    tail = empty(context.layers, k.shape[1], capacity, k.shape[3], k.shape[4], k.dtype if dtype is None else dtype)
    return tail._replace(position=context.position)


def quantised(context: Context) -> Context:
    """Keys and values as int8 with a scale for each entry and head: its largest number is 127."""
    runs = []
    for run in context.runs:
        (k, k_scale), (v, v_scale) = rounded(run.k), rounded(run.v)
        runs.append(run._replace(k=k, v=v, scales=(k_scale, v_scale)))
    return Context(tuple(runs), context.position)


def repeated(cache: KVCache, times: int) -> KVCache:
    """Each example's row `times` times, one after the other."""
    k, v = (jnp.repeat(x, times, axis=1) for x in (cache.k, cache.v))
    return KVCache(k, v, jnp.repeat(cache.length, times), jnp.repeat(cache.position, times))


def for_rows(context: Context, rows: int) -> Context:
    """Each example's entries as often as makes `rows` of them, one after the other.

    Raises:
      ValueError: `rows` is no multiple of their number.
    """
    times, rest = divmod(rows, len(context.position))
    if rest or not times:
        raise ValueError(f"{rows} rows of {len(context.position)} contexts: expected a multiple")
    if times == 1:
        return context
    runs = jax.tree.map(lambda x: jnp.repeat(x, times, axis=1), context.runs)
    return Context(runs, jnp.repeat(context.position, times))
