"""Contexts read anew in a training step, at once or through a cache of fixed size, by the code that inference runs.

What was evicted on the way is gone: later losses tell a scorer nothing of it but by what draws of it were worth. The
last eviction is handed back unmade, so that the step can relax it or draw it as it does with the entries of a trace.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from rcp.config_eviction import EvictionConfig
from rcp.eviction import statistics
from rcp.eviction import stream as streams
from rcp.eviction.compaction import candidates
from rcp.eviction.prompt import Eviction, Weighed, weigh
from rcp.eviction.stream import Stream
from rcp.nn.cache import tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.transformer import Transformer
from rcp.sampling import Subset


class Reading(NamedTuple):
    """A context whose last eviction is yet to be made.

    Attributes:
      last: of what was kept until then and the last chunk. log_prob: of the evictions made before, where they were
        drawn; 0 where nothing had to be evicted.
    """

    last: Weighed
    log_prob: Float[Array, " batch"]


def read_context(
    model: Transformer,
    eviction: Eviction,
    c: EvictionConfig,
    tokens: Int[Array, "batch tokens"],
    budget: Int[Array, " batch"],
    *,
    keys: Key[Array, " batch"] | None = None,
    drawn: Key[Array, " batch"] | None = None,
) -> Reading:
    """Reads contexts, padded with -1 at the left: in chunks where `c.stream_size`, else at once.

    Args:
      budget: entries that a head keeps, at most `c.stream_size` in a stream.
      keys: one an example, where the policy draws its scores.
      drawn: one an example, to draw what is kept by its scores; None keeps the best.
    """
    there = tokens >= 0
    tokens = jnp.maximum(tokens, 0)
    if not c.stream_size:
        last = _at_once(model, eviction, tokens, there, budget, keys)
        return Reading(last, jnp.zeros(budget.shape, jnp.float32))
    batch, width = tokens.shape
    count = -(-width // c.chunk)

    def in_chunks(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (count * c.chunk - width, 0)))
        return jnp.moveaxis(padded.reshape(batch, count, c.chunk), 1, 0)

    def read(stream: Stream, part: tuple[Array, Array]) -> tuple[Stream, Any]:
        tail = tail_of(stream.context, c.chunk)
        _, tail, stream = streams.read_behind(model, stream, tail, part[0], eviction, valid=part[1], slots=0)
        return stream, tail

    @jax.checkpoint
    def one(carry: tuple[Stream, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Stream, Array], None]:
        stream, log_prob = carry
        number, tokens, there = part
        of_chunk = {"keys": _numbered(keys, number), "drawn": _numbered(drawn, number)}
        before, tail = read(stream, (tokens, there))
        stream, subset = streams.evict(model, before, tail, eviction, budget=budget, **of_chunk)
        held = before.context.runs[0].length.sum(axis=(0, 2)) + tail.length * heads
        return (stream, log_prob + log_prob_of(subset, held)), None

    heads = model.config.n_layers * model.config.n_kv_heads
    start = (streams.start(model, eviction, batch, size=c.stream_size, chunk=c.chunk), jnp.zeros((batch,), jnp.float32))
    parts = in_chunks(tokens), in_chunks(there)
    numbers = jnp.arange(count - 1, dtype=jnp.uint32)
    (stream, log_prob), _ = lax.scan(one, start, (numbers, *(x[:-1] for x in parts)))
    stream, tail = read(stream, (parts[0][-1], parts[1][-1]))
    limit = jnp.full(budget.shape, c.stream_size, jnp.int32)
    found = candidates(tail, stream.context)
    return Reading(weigh(model, found, stream.statistics, eviction, budget, limit, keys=keys), log_prob)


def _numbered(keys: Key[Array, " batch"] | None, number: Array) -> Key[Array, " batch"] | None:
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def log_prob_of(subset: Subset, held: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Of what was drawn of `held` entries; 0 where all are kept: there the order of drawing alone is left to chance."""
    total = subset.log_prob.reshape(len(held), -1).sum(axis=-1)
    return jnp.where(subset.mask.sum(axis=(1, 2, 3)) < held, total, 0.0)


def _at_once(
    model: Transformer,
    eviction: Eviction,
    tokens: Int[Array, "batch tokens"],
    there: Bool[Array, "batch tokens"],
    budget: Int[Array, " batch"],
    keys: Key[Array, " batch"] | None,
) -> Weighed:
    batch, width = tokens.shape
    needs = eviction.policy.needs
    cache, observe = model.new_cache(batch, width), statistics.observer(needs)
    nothing = statistics.start(needs, model, batch, width)
    _, cache, gathered = read_chunk(model, tokens, cache, valid=there, slots=0, observe=observe, observed=nothing)
    return weigh(model, candidates(cache), gathered, eviction, budget, cache.length, keys=keys)
