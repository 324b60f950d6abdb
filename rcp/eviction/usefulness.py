"""What each entry of a cache turned out to be good for: the attention that later tokens really paid to it.

This is the target that learned eviction is trained on. A context is read once with its whole cache; questions with
their answers are read behind it, several as rows of one batch; nothing is drawn and nothing decoded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp.eviction.weights import reduce_weights
from rcp.nn.cache import KVCache, as_context, for_rows, tail_of
from rcp.nn.chunk import LayerRead, read_chunk
from rcp.nn.transformer import Transformer


class Usefulness(NamedTuple):
    """Attention weights on the entries of a context, over the query heads of a group.

    Attributes:
      largest, mean: over the tokens of question and answer, but for the answer's last, after which nothing is said.
      asked: the largest over the tokens of the question alone, which is known before the answer is.
    """

    largest: Float[Array, "layers rows kv_heads entries"]
    mean: Float[Array, "layers rows kv_heads entries"]
    asked: Float[Array, "layers rows kv_heads entries"]


def usefulness(
    model: Transformer,
    cache: KVCache,
    tokens: Int[Array, "rows tokens"],
    *,
    valid: Bool[Array, "rows tokens"],
    answer: Bool[Array, "rows tokens"],
) -> Usefulness:
    """Reads questions with their answers behind a whole cache.

    Args:
      cache: of contexts read with default positions; of one context, which then serves all rows, or of one for each.
      answer: which tokens are of the answer.
    """
    rows, width = tokens.shape
    context = for_rows(as_context(cache), rows)
    place = jnp.arange(width, dtype=jnp.int32)[None]
    last = jnp.max(jnp.where(valid, place, -1), axis=1, keepdims=True)
    sides = (valid & (place < last), valid & ~answer)
    shape = (cache.k.shape[0], rows, cache.k.shape[3], cache.capacity)
    nothing = Usefulness(*(jnp.zeros(shape, jnp.float32) for _ in Usefulness._fields))

    def observe(_: Any, read: LayerRead) -> Usefulness:
        return _of_layer(read, *sides)

    tail = tail_of(context, width)
    return read_chunk(model, tokens, tail, context=context, valid=valid, slots=0, observe=observe, observed=nothing)[2]


def _of_layer(read: LayerRead, useful: Bool[Array, "rows tokens"], asking: Bool[Array, "rows tokens"]) -> Usefulness:
    (past,) = read.past
    own = read.projected.k
    slots = past.k.shape[1]

    def by_head(x: Array) -> Array:
        return jnp.broadcast_to(x[:, :, None], own.shape[:3])

    there = jnp.arange(slots, dtype=jnp.int32)[None, :, None] < past.length[:, None]
    count = jnp.broadcast_to(jnp.arange(own.shape[1], dtype=jnp.int32)[None], own.shape[:2])
    before = jnp.full((own.shape[0], slots, own.shape[2]), -1, jnp.int32)
    keys = jnp.concatenate([past.k, own], axis=1)
    order = jnp.concatenate([before, by_head(count)], axis=1)
    seen = jnp.concatenate([there, by_head(read.valid)], axis=1)

    def over(queries: Bool[Array, "rows tokens"], reduce: Any) -> Float[Array, "rows kv_heads group entries"]:
        found = reduce_weights(
            read.projected.q,
            keys,
            key_order=order,
            key_valid=seen,
            query_order=count,
            query_valid=queries,
            reduce=reduce,
        )
        return found[..., :slots]

    tokens = jnp.maximum(jnp.sum(useful, axis=1), 1).astype(jnp.float32)
    return Usefulness(
        over(useful, "max").max(axis=2),
        over(useful, "sum").mean(axis=2) / tokens[:, None, None],
        over(asking, "max").max(axis=2),
    )
