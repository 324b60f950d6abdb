"""A cache of fixed size over input of any length: chunk by chunk, read behind what is kept, then evict.

One step is a pure function of fixed shapes, for a `lax.scan` over chunks or a loop without end. Per head the cache
holds `size` entries, and those of a chunk more while it is read.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rcp.eviction import statistics
from rcp.eviction.base import Statistics
from rcp.eviction.compaction import candidates, compact, order_of
from rcp.eviction.prompt import Eviction, weigh
from rcp.nn.cache import Context, KVCache, as_context, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.transformer import Transformer
from rcp.sampling import Subset


class Stream(NamedTuple):
    """What is carried from chunk to chunk: the entries kept, and what was gathered of them and of the queries."""

    context: Context
    statistics: Statistics


def start(model: Transformer, eviction: Eviction, batch: int, *, size: int, chunk: int) -> Stream:
    """Nothing read yet.

    Raises:
      ValueError: the policy cannot stream; sinks and newest entries, which are always kept, are more than the size.
    """
    needs = eviction.policy.needs
    if eviction.sinks + eviction.recent > size:
        raise ValueError(
            f"{eviction.sinks} sinks and the newest {eviction.recent} entries do not fit into a cache of {size}"
        )
    if not eviction.policy.streams:
        raise ValueError(
            f"policy {eviction.policy.name!r} cannot stream: it reads the prompt twice, looks at a question, or wants "
            "all of a token when only some heads still hold its entries (score those in `observe`)"
        )
    return Stream(as_context(model.new_cache(batch, size)), statistics.start(needs, model, batch, size + chunk))


def step(
    model: Transformer,
    stream: Stream,
    tokens: Int[Array, "batch chunk"],
    eviction: Eviction,
    *,
    valid: Bool[Array, "batch chunk"] | None = None,
    budget: Int[Array, " batch"] | None = None,
    keys: Key[Array, " batch"] | None = None,
) -> tuple[Float[Array, "batch chunk dim"], Stream]:
    """Reads a chunk behind what is kept; returns its hidden states and what is kept then.

    Args:
      budget: entries that a head keeps, mean over layers and heads; at most the size, which is the default. Where heads
        or layers share it unevenly it must be smaller: no head ever keeps more than the size.
      keys: one an example, where the policy draws.
    """
    tail = tail_of(stream.context, tokens.shape[1])
    h, tail, read = read_behind(model, stream, tail, tokens, eviction, valid=valid, slots=0)
    return h, evict(model, read, tail, eviction, budget=budget, keys=keys).stream


def read_behind(
    model: Transformer,
    stream: Stream,
    tail: KVCache,
    tokens: Int[Array, "batch tokens"],
    eviction: Eviction,
    *,
    valid: Bool[Array, "batch tokens"] | None = None,
    slots: int | None = None,
) -> tuple[Float[Array, "batch tokens dim"], KVCache, Stream]:
    """Reads tokens into the tail, of a chunk's capacity, and evicts nothing: hidden states, the tail, what was seen.

    `slots` is that of `read_chunk`.
    """
    h, tail, gathered = read_chunk(
        model,
        tokens,
        tail,
        context=stream.context,
        valid=valid,
        slots=slots,
        observe=statistics.observer(eviction.policy.needs),
        observed=stream.statistics,
    )
    return h, tail, Stream(stream.context, gathered)


class Evicted(NamedTuple):
    """The stream with what was kept, and how it was chosen."""

    stream: Stream
    subset: Subset


def evict(
    model: Transformer,
    stream: Stream,
    tail: KVCache,
    eviction: Eviction,
    *,
    budget: Int[Array, " batch"] | None = None,
    keys: Key[Array, " batch"] | None = None,
    drawn: Key[Array, " batch"] | None = None,
) -> Evicted:
    """Keeps the best of a stream and of the tail read behind it, or what is `drawn` by scores (one key an example).

    `budget`, `keys`: as in `step`.
    """
    size = stream.context.runs[0].capacity
    limit = jnp.full(tail.length.shape, size, jnp.int32)
    budget = limit if budget is None else budget
    w = weigh(model, candidates(tail, stream.context), stream.statistics, eviction, budget, limit, keys=keys)
    subset = w.subset(eviction.shared, most=size, drawn=drawn)
    context = compact(w.found, subset.mask, size, repack=eviction.repack, frequencies=model.frequencies())
    return Evicted(Stream(context, _carried(stream.statistics, subset.mask, size, eviction.repack)), subset)


def _carried(
    gathered: Statistics, keep: Bool[Array, "batch layers kv_heads entries"], size: int, repack: bool
) -> Statistics:
    """What was gathered, moved with the entries kept. Repacked, queries of earlier chunks have no place any more."""
    if gathered.received is not None:
        there = jnp.arange(size)[None, None, None] < keep.sum(axis=-1).swapaxes(0, 1)[..., None]
        moved = jnp.take_along_axis(gathered.received, order_of(keep)[..., :size], axis=-1)
        room = gathered.received.shape[-1] - size
        moved = jnp.pad(jnp.where(there, moved, 0.0), ((0, 0), (0, 0), (0, 0), (0, room)))
        gathered = gathered._replace(received=moved)
    if repack and gathered.query_position is not None:
        gathered = gathered._replace(query_position=jnp.full_like(gathered.query_position, -1))
    return gathered
