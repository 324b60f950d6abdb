"""KVzip (Kim et al., arXiv 2505.23416): an entry counts by how much attention it gets while the prompt is repeated.

The prompt is read a second time, chunk by chunk, behind its own cache and a request to repeat it. An entry's score is
the largest attention weight that any of those tokens, in any query head of its group, gives it; the softmax is over
the first entries (sinks), the entries of the chunk and the tokens of the second reading, as in kvpress.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from rcp.eviction.allotment import GLOBAL, Allotment
from rcp.eviction.base import EvictionPolicy, Needs, Seen, heads_first
from rcp.eviction.weights import reduce_weights
from rcp.nn.cache import KVCache, as_context, tail_of
from rcp.nn.chunk import LayerRead, read_chunk
from rcp.nn.layout import first_tokens
from rcp.nn.transformer import Transformer
from rcp.types import Tokenizer

BRIDGE = 8  # last tokens of the chunk before, which say where to go on


@dataclass(frozen=True)
class Repeat:
    """How the model is asked to repeat its prompt; token ids.

    Attributes:
      first: the request for the first chunk ("\\n\\nRepeat the previous context exactly.").
      later: for those after it ("\\n\\nRepeat the part of the previous context exactly, starting with"); the last
        tokens of the chunk before follow.
      suffix: what stands before the model's answer in its chat template.
      chunk: tokens repeated at a time (2,048 in the paper; a shorter one compares an entry with fewer others).
      sinks: entries that take part in every chunk's softmax and get score 1.
    """

    first: tuple[int, ...]
    later: tuple[int, ...]
    suffix: tuple[int, ...] = ()
    chunk: int = 2048
    sinks: int = 4


def repeat_of(tokenizer: Tokenizer) -> Repeat:
    """As kvpress asks a model without a chat template."""
    first = tokenizer.encode("\n\nRepeat the previous context exactly.")
    later = tokenizer.encode("\n\nRepeat the part of the previous context exactly, starting with")
    return Repeat(tuple(first), tuple(later), tuple(tokenizer.encode("\n")))


@dataclass(frozen=True)
class KVzip(EvictionPolicy):
    """The scores that `reconstruct` found. All heads and layers compete, as in the paper."""

    name: ClassVar[str] = "kvzip"
    allotment: ClassVar[Allotment] = GLOBAL
    sinks: int = 4

    @property
    def needs(self) -> Needs:
        return Needs(reconstruction=True)

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        found = seen.statistics.reconstruction
        if found is None:
            raise ValueError("the prompt was not repeated: give `repeat` where it is read (Needs.reconstruction)")
        return jnp.where(heads_first(seen.position) < self.sinks, 1.0, found)


def reconstruct(
    model: Transformer, cache: KVCache, tokens: Int[Array, "batch entries"], repeat: Repeat
) -> Float[Array, "layers batch kv_heads entries"]:
    """Largest attention weight that each entry of a whole cache gets while its tokens are repeated.

    Args:
      cache: of a prompt read with default positions.
      tokens: the prompt's, one a slot of the cache, padding at the right end.
    """
    batch, entries = tokens.shape
    chunk = min(repeat.chunk, entries)
    chunks = -(-entries // chunk)
    padded = jnp.pad(tokens, ((0, 0), (BRIDGE, chunks * chunk - entries)))
    context = as_context(cache)
    width = max(len(repeat.first), len(repeat.later))
    requests = np.zeros((2, width), np.int32)
    asked = np.zeros((2, width), bool)
    for row, ids in enumerate((repeat.first, repeat.later)):
        requests[row, width - len(ids) :], asked[row, width - len(ids) :] = ids, True
    suffix = np.asarray(repeat.suffix, np.int32)

    def rows(x: Array) -> Array:
        return jnp.broadcast_to(x[None], (batch, *x.shape))

    def of_chunk(number: Array) -> Array:
        start, later = number * chunk, jnp.minimum(number, 1)
        part = lax.dynamic_slice_in_dim(padded, start, BRIDGE + chunk, axis=1)
        bridge, again = part[:, :BRIDGE], part[:, BRIDGE:]
        there = first_tokens(cache.length - start, chunk)
        request, suffixes = rows(jnp.asarray(requests)[later]), rows(jnp.asarray(suffix))
        row = jnp.concatenate([request, bridge, suffixes, again], axis=1)
        fixed = (jnp.asarray(asked)[later], jnp.broadcast_to(later > 0, (BRIDGE,)), jnp.ones(len(suffix), bool))
        valid = jnp.concatenate([rows(jnp.concatenate(fixed)), there], axis=1)
        layers, heads = cache.k.shape[0], cache.k.shape[3]
        nothing = jnp.zeros((layers, batch, heads, chunk), jnp.float32)

        def observe(_: Any, read: LayerRead) -> Array:
            return _largest(read, start, chunk, repeat.sinks)

        tail = tail_of(context, row.shape[1])
        return read_chunk(model, row, tail, context=context, valid=valid, slots=0, observe=observe, observed=nothing)[2]

    longest = jnp.max(cache.length)
    found = lax.map(
        lambda number: lax.cond(
            number * chunk < longest,
            of_chunk,
            lambda _: jnp.zeros((cache.k.shape[0], batch, cache.k.shape[3], chunk), jnp.float32),
            number,
        ),
        jnp.arange(chunks, dtype=jnp.int32),
    )
    found = jnp.moveaxis(found, 0, 3).reshape(*found.shape[1:4], chunks * chunk)
    return found[..., :entries]


def _largest(read: LayerRead, start: Array, chunk: int, sinks: int) -> Float[Array, "batch kv_heads chunk"]:
    """Largest weight on each entry of the chunk at `start`, over the tokens read and the heads of a group."""
    (past,) = read.past
    own = read.projected.k
    batch, slots, heads, _ = past.k.shape
    # The last chunk may reach beyond the slots: it is cut out earlier, and what it found is shifted back.
    begin = jnp.minimum(start, slots - chunk)
    k = jnp.concatenate([past.k[:, :sinks], lax.dynamic_slice_in_dim(past.k, begin, chunk, axis=1), own], axis=1)

    def by_head(there: Array) -> Array:
        return jnp.broadcast_to(there[:, :, None], (*there.shape, heads))

    slot = begin + jnp.arange(chunk, dtype=jnp.int32)[None, :, None]
    number = jnp.arange(min(sinks, slots), dtype=jnp.int32)[None, :, None]
    length = past.length[:, None]  # [batch, 1, kv_heads]
    first = number < jnp.minimum(start, length)  # sinks that are not in the chunk itself
    inside = (slot >= start) & (slot < length)
    valid = jnp.concatenate([first, inside, by_head(read.valid)], axis=1)
    count = jnp.arange(own.shape[1], dtype=jnp.int32)[None]
    before = jnp.full((batch, valid.shape[1] - own.shape[1]), -1, jnp.int32)
    order = jnp.concatenate([before, jnp.broadcast_to(count, (batch, own.shape[1]))], axis=1)
    weights = reduce_weights(
        read.projected.q,
        k,
        key_order=by_head(order),
        key_valid=valid,
        query_order=jnp.broadcast_to(count, (batch, own.shape[1])),
        query_valid=read.valid,
        reduce="max",
    ).max(axis=2)
    found = weights[:, :, number.shape[1] : number.shape[1] + chunk]
    return jnp.roll(found, begin - start, axis=2)
