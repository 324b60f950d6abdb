"""Attention weights summed up over queries, or their maximum, without an array of queries times keys."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.attention import query_key_scores

BLOCK = 64  # queries whose weights exist at a time


def reduce_weights(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    *,
    key_order: Int[Array, "batch keys kv_heads"],
    key_valid: Bool[Array, "batch keys kv_heads"],
    query_order: Int[Array, "batch queries"],
    query_valid: Bool[Array, "batch queries"],
    reduce: Literal["sum", "max"],
    block: int = BLOCK,
) -> Float[Array, "batch kv_heads group keys"]:
    """Sum or maximum over queries of softmax(q . k / sqrt(dim)), float32.

    A query sees the valid keys whose order is not above its own. Queries that are not valid, and such that see nothing,
    count 0. No array has more than `block * keys` weights a head.
    """
    batch, queries, heads, dim = q.shape
    grouped = q.reshape(batch, queries, k.shape[2], heads // k.shape[2], dim)
    visible, order = (jnp.swapaxes(x, 1, 2)[:, :, None, None, :] for x in (key_valid, key_order))
    block = min(block, queries)
    blocks = -(-queries // block)
    extra = blocks * block - queries

    def in_blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, extra), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, blocks, block, *x.shape[2:]), 1, 0)

    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        q, own, there = part
        allowed = visible & (order <= own[:, None, None, :, None]) & there[:, None, None, :, None]
        scores = jnp.where(allowed, query_key_scores(q, k), -jnp.inf)
        top = jnp.max(scores, axis=-1, keepdims=True)
        mass = jnp.exp(scores - jnp.where(top == -jnp.inf, 0.0, top))
        weights = mass / jnp.maximum(mass.sum(axis=-1, keepdims=True), 1e-30)
        if reduce == "sum":
            return total + weights.sum(axis=3), None
        return jnp.maximum(total, weights.max(axis=3)), None

    nothing = jnp.zeros((batch, k.shape[2], heads // k.shape[2], k.shape[1]), jnp.float32)
    return lax.scan(add, nothing, (in_blocks(grouped), in_blocks(query_order), in_blocks(query_valid)))[0]
