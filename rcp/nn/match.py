"""One block of the transformer scorers: match attention between pieces of a prompt, attention within a piece, MLP.

Match attention is explained in `rcp.nn.scorer`. A piece is a context segment, the question or the instruction. Past
`DENSE_LIMIT` tokens both kinds of attention go over blocks of queries, whose weights are computed anew in the backward
pass: no array has more than `BLOCK * tokens` weights a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

MATCH_DIM = 64  # of the projection in which tokens are compared
SHARPNESS, THRESHOLD = 12.0, 0.6  # of match attention, at the start
DENSE_LIMIT = 512  # tokens whose weights stand in one array
BLOCK = 128  # queries a block beyond that


def normal(rngs: nnx.Rngs, *shape: int, scale: float | None = None) -> nnx.Param:
    """Normal weights of deviation `scale`; None: 1 / sqrt(inputs), the last but one axis."""
    deviation = float(shape[-2]) ** -0.5 if scale is None else scale
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))


def layer_norm(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Mean 0 and deviation 1 over the last axis, without parameters."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)


def _unit(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class Block(nnx.Module):
    """Each of its three parts is added to the residual stream."""

    def __init__(self, inputs: int, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.match = normal(rngs, heads, inputs, MATCH_DIM)
        self.sharpness = nnx.Param(jnp.full((heads,), SHARPNESS))
        self.threshold = nnx.Param(jnp.full((heads,), THRESHOLD))
        self.match_value = normal(rngs, width, width)
        self.match_out = normal(rngs, width, width, scale=0.5 * width**-0.5)
        self.relevance_in = normal(rngs, 2 * heads, width, scale=1.0)
        self.qkv = normal(rngs, width, 3 * width)
        self.out = normal(rngs, width, width, scale=0.5 * width**-0.5)
        self.up = normal(rngs, width, 2 * width)
        self.down = normal(rngs, 2 * width, width, scale=0.5 * (2 * width) ** -0.5)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        relevance: Float[Array, "batch tokens heads"],
        inputs: Float[Array, "batch tokens inputs"],
        group: Int[Array, "batch tokens"],
        groups: int,
        valid: Bool[Array, "batch tokens"],
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch tokens heads"]]:
        """`group`: the piece that a token belongs to, below `groups`. `valid`: tokens that others may look at.

        Returns the new stream and the new relevance, in [0, 1].
        """
        split = (*x.shape[:2], self.heads, -1)
        point = _unit(jnp.einsum("bti,him->bthm", inputs, self.match[...]))
        value = (layer_norm(x) @ self.match_value[...]).reshape(split)
        match = partial(
            _match, point, value, relevance, group, valid, sharpness=self.sharpness[...], threshold=self.threshold[...]
        )
        brought, reached = over_queries(match, point, group)
        x = x + brought.reshape(x.shape) @ self.match_out[...]

        spread = 1.0 - jnp.exp(-_spread(jnp.where(valid[..., None], reached, 0.0), group, groups))
        x = x + jnp.concatenate([reached, spread], axis=-1) @ self.relevance_in[...]

        q, k, v = jnp.split(layer_norm(x) @ self.qkv[...], 3, axis=-1)
        q, k, v = q.reshape(split), k.reshape(split), v.reshape(split)
        (mixed,) = over_queries(partial(attend_within, k, v, group, valid), q, group)
        x = x + mixed.reshape(x.shape) @ self.out[...]
        x = x + jax.nn.gelu(layer_norm(x) @ self.up[...]) @ self.down[...]
        return x, jnp.maximum(relevance, spread)


def _match(point, value, relevance, group, valid, query, query_group, *, sharpness, threshold) -> tuple[Array, Array]:
    """What valid tokens of other pieces that are like the query bring: values [batch, queries, heads, dim], relevance.

    A softmax with a constant 0 beside the tokens, so that the weights of a query sum to less than 1.
    """
    allowed = (query_group[:, :, None] != group[:, None, :]) & valid[:, None, :]
    cosine = jnp.einsum("bthm,bshm->bhts", query, point)
    logits = sharpness[None, :, None, None] * (cosine - threshold[None, :, None, None])
    mass = jnp.where(allowed[:, None], jnp.exp(logits), 0.0)
    weights = mass / (1.0 + jnp.sum(mass, axis=-1, keepdims=True))
    return jnp.einsum("bhts,bshd->bthd", weights, value), jnp.einsum("bhts,bsh->bth", weights, relevance)


def attend_within(k, v, group, valid, query, query_group) -> tuple[Array]:
    """Attention of the queries to the valid tokens of their own piece, [batch, queries, heads, dim]."""
    same = (query_group[:, :, None] == group[:, None, :]) & valid[:, None, :]
    scores = jnp.einsum("bthd,bshd->bhts", query, k) * query.shape[-1] ** -0.5
    scores = jnp.where(same[:, None], scores, -1e9)
    return (jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v),)


def _spread(
    values: Float[Array, "batch tokens heads"], group: Array, groups: int
) -> Float[Array, "batch tokens heads"]:
    """Sum over each token's piece."""
    member = (group[..., None] == jnp.arange(groups, dtype=jnp.int32)[None, None]).astype(jnp.float32)
    return jnp.einsum("btg,bgh->bth", member, jnp.einsum("btg,bth->bgh", member, values))


def over_queries(attend: Callable[[Array, Array], tuple[Array, ...]], query: Array, group: Array) -> tuple[Array, ...]:
    """`attend(query, group)` of all queries [batch, tokens, ...]: at once, or in blocks past `DENSE_LIMIT`."""
    batch, tokens = group.shape
    if tokens <= DENSE_LIMIT:
        return attend(query, group)
    blocks = -(-tokens // BLOCK)

    def cut(x: Array) -> Array:  # [blocks, batch, BLOCK, ...]; rows of zeros fill the last one
        x = jnp.pad(x, ((0, 0), (0, blocks * BLOCK - tokens), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, blocks, BLOCK, *x.shape[2:]), 1, 0)

    def joined(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(batch, blocks * BLOCK, *x.shape[3:])[:, :tokens]

    outputs = jax.lax.map(jax.checkpoint(lambda item: attend(*item)), (cut(query), cut(group)))
    return tuple(joined(x) for x in outputs)
