"""What policies need to know of a prompt, gathered layer by layer while it is read in chunks."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rcp.eviction.base import Needs, Statistics
from rcp.eviction.weights import reduce_weights
from rcp.nn.chunk import LayerRead, Observe
from rcp.nn.transformer import Transformer


def start(needs: Needs, model: Transformer, batch: int, entries: int) -> Statistics:
    """Nothing gathered yet, stacked over layers. `entries` of a layer there will be at most."""
    c = model.config
    float32, layers, heads, dim = jnp.float32, c.n_layers, c.n_heads, c.head_dim
    nothing = Statistics()
    if needs.window:
        nothing = nothing._replace(
            queries=jnp.zeros((layers, batch, needs.window, heads, dim), model.dtype),
            query_position=jnp.full((layers, batch, needs.window), -1, jnp.int32),
        )
    if needs.received:
        nothing = nothing._replace(received=jnp.zeros((layers, batch, c.n_kv_heads, entries), float32))
    if needs.moments is not None:
        nothing = nothing._replace(
            query_count=jnp.zeros((layers, batch), float32),
            query_sum=jnp.zeros((layers, batch, heads, dim), float32),
            query_outer=jnp.zeros((layers, batch, heads, dim, dim), float32),
        )
    if needs.hidden:
        nothing = nothing._replace(hidden=jnp.zeros((layers, batch, entries, c.d_model), model.dtype))
    return nothing


def observer(needs: Needs) -> Observe:
    """The function that `read_chunk` calls in every layer."""

    def observe(seen: Statistics, read: LayerRead) -> Statistics:
        if seen.queries is not None and seen.query_position is not None:
            queries, position = _newest(seen.queries, seen.query_position, read)
            seen = seen._replace(queries=queries, query_position=position)
        if seen.received is not None:
            seen = seen._replace(received=_add_received(seen.received, read))
        if needs.moments is not None:
            seen = _add_moments(seen, read, needs.moments)
        if seen.hidden is not None:
            rows = jnp.arange(seen.hidden.shape[0])[:, None]
            x = read.projected.x.astype(seen.hidden.dtype)
            seen = seen._replace(hidden=seen.hidden.at[rows, read.slot].set(x, mode="drop"))
        return seen

    return observe


def _newest(
    queries: Float[Array, "batch window heads dim"], position: Int[Array, "batch window"], read: LayerRead
) -> tuple[Array, Array]:
    """The window moved on: its queries and the chunk's, the last of them that are there."""
    window = queries.shape[1]
    both = jnp.concatenate([queries, read.projected.q], axis=1)
    places = jnp.concatenate([position, jnp.where(read.valid, read.position, -1)], axis=1)
    newest = jnp.argsort(places >= 0, axis=1, stable=True)[:, -window:]
    return jnp.take_along_axis(both, newest[:, :, None, None], axis=1), jnp.take_along_axis(places, newest, axis=1)


def _add_received(
    received: Float[Array, "batch kv_heads entries"], read: LayerRead
) -> Float[Array, "batch kv_heads entries"]:
    """Adds the attention of the chunk's queries: to what came before, and to the chunk's own entries at their slots."""
    own = read.projected.k
    batch, tokens, heads, _ = own.shape
    order = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None], (batch, tokens))
    keys, valid, places = [], [], []
    for part in read.past:
        slot = jnp.arange(part.k.shape[1], dtype=jnp.int32)[None, :, None]
        length = part.length[:, None] if part.length.ndim == 2 else part.length[:, None, None]
        keys.append(part.k)
        valid.append(jnp.broadcast_to(slot < length, part.k.shape[:3]))
        places.append(jnp.full(part.k.shape[:3], -1, jnp.int32))
    before = sum(k.shape[1] for k in keys)
    weights = reduce_weights(
        read.projected.q,
        jnp.concatenate([*keys, own], axis=1),
        key_order=jnp.concatenate([*places, jnp.broadcast_to(order[:, :, None], own.shape[:3])], axis=1),
        key_valid=jnp.concatenate([*valid, jnp.broadcast_to(read.valid[:, :, None], own.shape[:3])], axis=1),
        query_order=order,
        query_valid=read.valid,
        reduce="sum",
    ).mean(axis=2)
    received = received.at[:, :, :before].add(weights[:, :, :before])
    row, head = jnp.arange(batch)[:, None, None], jnp.arange(heads)[None, :, None]
    return received.at[row, head, read.slot[:, None]].add(weights[:, :, before:], mode="drop")


def _add_moments(seen: Statistics, read: LayerRead, first: int) -> Statistics:
    if seen.query_count is None or seen.query_sum is None or seen.query_outer is None:
        raise ValueError("the statistics were started without moments")
    counted = (read.valid & (read.position >= first)).astype(jnp.float32)
    q = read.projected.q_plain
    weighed = q * counted[:, :, None, None]
    return seen._replace(
        query_count=seen.query_count + counted.sum(axis=1),
        query_sum=seen.query_sum + weighed.sum(axis=1),
        query_outer=seen.query_outer + jnp.einsum("bthd,bthe->bhde", weighed, q),
    )
