"""A cache with the dropped entries really gone: gathered, smaller, each head with entries of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.cache import Context, Entries, KVCache, with_slots
from rcp.nn.layers import rotate
from rcp.sampling.order import inverse_permutation
from rcp.sampling.subset import rank_by_index


class Candidates(NamedTuple):
    """The entries that may be kept, of all layers, in reading order. `next`: position of the token that comes next."""

    k: Float[Array, "layers batch entries kv_heads dim"]
    v: Float[Array, "layers batch entries kv_heads dim"]
    position: Int[Array, "layers batch entries kv_heads"]
    valid: Bool[Array, "layers batch entries kv_heads"]
    next: Int[Array, " batch"]


def candidates(cache: KVCache, context: Context | None = None) -> Candidates:
    """All entries of a context and of the tail behind it, or of a whole cache read with default positions.

    The tail's tokens have the positions that end at `cache.position`. A context of several runs gets the capacity of
    its largest.
    """
    slots = jnp.arange(cache.capacity, dtype=jnp.int32)
    shape = cache.k.shape[:4]
    first = cache.position - cache.length
    position = jnp.broadcast_to((first[:, None] + slots[None])[None, :, :, None], shape)
    valid = jnp.broadcast_to((slots[None] < cache.length[:, None])[None, :, :, None], shape)
    tail = Candidates(cache.k, cache.v, position, valid, cache.position)
    if context is None:
        return tail
    if any(run.scales is not None for run in context.runs):
        raise ValueError("entries in int8 are for reading: evict before a context is quantised")
    before = _in_one(context.runs)
    k, v, position, valid = (jnp.concatenate(pair, axis=2) for pair in zip(before, tail[:4], strict=True))
    return Candidates(k, v, position, valid, cache.position)


def _in_one(runs: Sequence[Entries]) -> tuple[Array, Array, Array, Array]:
    """k, v, position and valid of all runs, at the capacity of the largest."""
    capacity = max(run.capacity for run in runs)

    k, v, position = (in_one(parts, capacity) for parts in zip(*((r.k, r.v, r.position) for r in runs)))
    length = jnp.concatenate([run.length for run in runs])
    slots = jnp.arange(capacity, dtype=jnp.int32)[None, None, :, None]
    return k, v, position, slots < length[:, :, None]


def in_one(parts: Sequence[Array], capacity: int) -> Array:
    """What runs of layers hold, [layers, batch, slots, ...] each, as one array of that capacity."""
    return jnp.concatenate([with_slots(x, capacity) for x in parts])


def compact(
    found: Candidates,
    keep: Bool[Array, "batch layers kv_heads entries"],
    capacities: int | Sequence[int],
    *,
    repack: bool = False,
    frequencies: Float[Array, " half"] | None = None,
) -> Context:
    """The kept entries, in order, as a context of the static capacities (one, or one a layer).

    A head's entries beyond its capacity are cut off: `needed` says how many there are. Consecutive layers of one
    capacity make a run; a model is compiled once for every run, so let there be few (`stepped`).

    Args:
      repack: keys are turned to positions without gaps; the token that comes next has the largest number of entries of
        any head as its position, and heads with fewer have theirs end just before it. Else positions stay.
      frequencies: of the rotary embedding, where `repack`.
    """
    layers, _, slots = found.k.shape[:3]
    each = [capacities] * layers if isinstance(capacities, int) else list(capacities)
    if len(each) != layers:
        raise ValueError(f"{len(each)} capacities for {layers} layers")
    parts = _runs(each)  # of what was asked for: so runs stay the same whatever slots there are
    each = [min(capacity, slots) for capacity in each]
    order = order_of(keep)
    count = jnp.sum(jnp.swapaxes(keep, 0, 1), axis=-1, dtype=jnp.int32)
    bound = jnp.asarray(each, jnp.int32)[:, None, None]
    length = jnp.minimum(count, bound)
    after = length.max(axis=(0, 2)) if repack else found.next
    runs = []
    for first, last in parts:
        part = slice(first, last)
        run = _gather(found, order[part, ..., : each[first]], length[part], part)
        if repack:
            if frequencies is None:
                raise ValueError("repacked positions need the frequencies of the rotary embedding")
            run = _repacked(run, after, frequencies)
        runs.append(run)
    return Context(tuple(runs), after)


def order_of(keep: Bool[Array, "batch layers kv_heads entries"]) -> Int[Array, "layers batch kv_heads entries"]:
    """Numbers of the entries, the kept ones first, each part in its order."""
    return inverse_permutation(rank_by_index(jnp.swapaxes(keep, 0, 1)))


def _runs(capacities: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last + 1) of consecutive layers of one capacity."""
    starts = [i for i, c in enumerate(capacities) if i == 0 or c != capacities[i - 1]]
    return list(zip(starts, [*starts[1:], len(capacities)]))


def _gather(found: Candidates, order: Array, length: Array, layers: slice) -> Entries:
    index = jnp.swapaxes(order, 2, 3)  # [layers, batch, capacity, kv_heads]
    there = jnp.arange(index.shape[2], dtype=jnp.int32)[None, None, :, None] < length[:, :, None]

    def taken(x: Array) -> Array:
        at = index.reshape(index.shape + (1,) * (x.ndim - 4))
        kept = jnp.take_along_axis(x[layers], at, axis=2)
        return jnp.where(there.reshape(there.shape + (1,) * (x.ndim - 4)), kept, jnp.zeros((), x.dtype))

    return Entries(taken(found.k), taken(found.v), taken(found.position), length)


def _repacked(run: Entries, after: Int[Array, " batch"], frequencies: Array) -> Entries:
    """Keys turned from where they stood to places that end just before `after`."""
    place = jnp.arange(run.capacity, dtype=jnp.int32)[None, None, :, None]
    position = after[None, :, None, None] - run.length[:, :, None] + place
    return _turned(run, position, place < run.length[:, :, None], frequencies)


def moved(context: Context, position: Int[Array, " batch"], frequencies: Float[Array, " half"]) -> Context:
    """The context with every key turned by what lies between its own next position and `position`.

    Rotary attention knows differences of positions alone: what is read behind it finds the same.
    """
    by = (position - context.position)[None, :, None, None]
    runs = tuple(
        _turned(run, run.position + by, jnp.ones(run.position.shape, bool), frequencies) for run in context.runs
    )
    return Context(runs, position)


def _turned(run: Entries, position: Array, there: Array, frequencies: Array) -> Entries:
    """Keys turned from where they stood to new positions, where there are any. Raises ValueError on int8."""
    if run.scales is not None:
        raise ValueError("keys in int8 cannot be turned to other positions")
    turn = jnp.where(there, position - run.position, 0).astype(jnp.float32)
    angle = turn[..., None] * frequencies[None, None, None, None]
    k = rotate(run.k.astype(jnp.float32), jnp.cos(angle), jnp.sin(angle)).astype(run.k.dtype)
    return run._replace(k=k, position=jnp.where(there, position, 0))


def needed(keep: Bool[Array, "batch layers kv_heads entries"]) -> Int[Array, " layers"]:
    """The most entries that any head of a layer keeps in any example."""
    return jnp.sum(keep, axis=-1, dtype=jnp.int32).max(axis=(0, 2))


def stepped(counts: Sequence[int] | np.ndarray, multiple: int = 64, runs: int = 4) -> tuple[int, ...]:
    """Capacities that hold `counts` entries of each layer: multiples, in at most `runs` runs of layers.

    Layers are cut into runs of equal numbers. Few distinct capacities mean few compiles.
    """
    counts = np.asarray(counts)
    pieces = np.array_split(np.arange(len(counts)), min(runs, len(counts)))
    return tuple(int(max(1, -(-int(counts[piece].max()) // multiple)) * multiple) for piece in pieces for _ in piece)


def mask_entries(
    found: Candidates,
    keep: Bool[Array, "batch layers kv_heads entries"] | Float[Array, "batch layers kv_heads entries"],
) -> Context:
    """The same entries with nothing gathered: those dropped weigh 0. For training, and to hold compaction to.

    Weights in [0, 1] in place of a boolean mask are differentiable, those of dropped entries too (`rcp.nn.attention`).
    """
    layers, batch, entries, heads = found.valid.shape
    weight = jnp.swapaxes(jnp.swapaxes(keep, 0, 1), 2, 3)
    weight = jnp.where(found.valid, weight, jnp.zeros((), weight.dtype))
    length = jnp.full((layers, batch, heads), entries, jnp.int32)
    return Context((Entries(found.k, found.v, found.position, length, weight),), found.next)
