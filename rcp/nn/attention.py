"""Causal grouped-query attention that honours a keep-mask over keys, computed in blocks of queries.

With scores `s_ij = q_i . k_j / sqrt(d)` and a keep value `m_j` in [0, 1] per key, the weights are

    w_ij = m_ij exp(s_ij) / sum_l m_il exp(s_il),      m_ii = 1,   m_ij = m_j for j < i,   m_ij = 0 for j > i,

that is, `log m` added to the scores, written multiplicatively. The two are equal for m > 0, but at m = 0 the logarithm
has no gradient, while here `dw_ij / dm_j = exp(s_ij) / sum` is finite: a straight-through mask gets told what the
dropped token would have brought. A hard zero gives exactly zero weight, and exactly zero gradient to the dropped
token's key and value through every query but its own (a token always sees itself, so every row of weights has a
positive sum).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.fused import fused_attention, implementation_for, one_device
from rcp.nn.layout import first_tokens

DENSE_LIMIT = 256  # longest sequence whose scores stand in one array; beyond it small blocks are also faster on CPU
BLOCK = 128  # queries a block beyond that
REMATERIALISE = 1024  # beyond this many tokens a block's scores are computed anew in the backward pass
APART = 1 << 20  # scores in one array beyond which a CPU attends to one head of one example at a time
MAX_GROUPS = 16  # static key lengths compiled; within a group blocks are mapped over
MAX_EXPONENT = 30.0  # bound on s_j - max over kept keys for dropped keys: exp of it only scales their gradient to keep


class Past(NamedTuple):
    """One layer of a KV cache: its first slots, `length` of them, are visible to every query of the example.

    `length` is one number an example, or one for each of its key-value heads. `keep` in [0, 1] weighs slots as the
    keep-mask of `attention` weighs keys; None means 1. With `scales`, k and v are int8 and stand for scale * k.
    """

    k: Float[Array, "batch capacity kv_heads dim"]
    v: Float[Array, "batch capacity kv_heads dim"]
    length: Int[Array, "batch *kv_heads"]
    keep: Float[Array, "batch capacity kv_heads"] | Bool[Array, "batch capacity kv_heads"] | None = None
    scales: tuple[Float[Array, "batch capacity kv_heads"], Float[Array, "batch capacity kv_heads"]] | None = None


def attention(
    q: Float[Array, "batch tokens heads dim"],
    k: Float[Array, "batch tokens kv_heads dim"],
    v: Float[Array, "batch tokens kv_heads dim"],
    *,
    valid: Bool[Array, "batch tokens"] | None = None,
    lengths: Int[Array, " batch"] | None = None,
    keep: Float[Array, "batch tokens"] | Bool[Array, "batch tokens"] | None = None,
    past: Past | tuple[Past, ...] | None = None,
    block: int | None = None,
    apart: bool | None = None,
) -> Float[Array, "batch tokens heads dim"]:
    """Attention of each token to itself, to earlier valid tokens as far as kept, and to all of `past`.

    Scores and softmax are float32 whatever the operands' dtype. Query head h reads key-value head `h // (heads /
    kv_heads)`; keys and values are not repeated in memory. Once `tokens` passes `DENSE_LIMIT` no array has more than
    `block * tokens` scores a head; past `REMATERIALISE` this holds for the backward pass too. Without `valid`, `keep`,
    `past` and `block`, an accelerator's fused kernel is used where there is one (`rcp.nn.fused`).

    Args:
      q, k, v: rotated queries and keys, and values. Operands of the products are used in their own dtype.
      valid: False marks padding, on either side; None means no padding.
      lengths: in place of `valid`, where padding is at the right end only: tokens that are not padding. What comes out
        at padding is of no use and differs between kernels.
      keep: in [0, 1]; boolean or None where no gradient to it is wanted.
      past: cached keys and values that come before every token here; in several parts, if need be.
      block: queries a block; None chooses (all at once up to `DENSE_LIMIT`).
      apart: whether examples and their key-value heads are attended one after another, which takes a CPU half the time
        where only then a block's scores fit its cache; None chooses. Where gradients are asked for they never are.
    """
    if valid is not None and lengths is not None:
        raise ValueError("give either valid or lengths")
    batch, tokens, heads, dim = q.shape
    if valid is None and keep is None and past is None and block is None:
        implementation = implementation_for(q)
        if implementation is not None:
            return fused_attention(q, k, v, lengths, implementation)
    if lengths is not None:
        valid = first_tokens(lengths, tokens)
    if keep is not None and keep.dtype == jnp.bool_:
        valid, keep = (keep if valid is None else valid & keep), None
    q = q.reshape(batch, tokens, k.shape[2], heads // k.shape[2], dim)
    past = (past,) if isinstance(past, Past) else past or ()
    if apart is None:
        keys = tokens + sum(part.k.shape[1] for part in past)
        many = tokens >= BLOCK and batch * heads * BLOCK * keys > APART
        apart = many and jax.default_backend() == "cpu" and one_device()
    if block is None:
        block = tokens if tokens <= DENSE_LIMIT and not apart else BLOCK
    attend: Any = _attend_apart if apart else _attend
    return attend(block, q, k, v, valid, keep, past).reshape(batch, tokens, heads, dim)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_apart(block: int, q, k, v, valid, keep, past: tuple[Past, ...]):
    """As `_attend`, one example after the other, one key-value head after the other; no faster with a gradient."""

    def of_example(item):
        q, k, v, valid, keep, past = jax.tree.map(lambda x: x[None], item)
        lengths = tuple(jnp.broadcast_to(part.length.reshape(1, -1), (1, k.shape[2])).T for part in past)
        others = tuple(part._replace(length=None) for part in past)

        def of_head(item):
            lengths, *rest = item
            q, k, v, past = jax.tree.map(lambda x: jnp.expand_dims(x, 2), tuple(rest))
            past = tuple(part._replace(length=length) for part, length in zip(past, lengths))
            return _attend(block, q, k, v, valid, keep, past)[:, :, 0]

        heads = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (q, k, v, others))
        return jnp.moveaxis(lax.map(of_head, (lengths, *heads)), 0, 2)[0]

    return lax.map(of_example, (q, k, v, valid, keep, past))


_attend_apart.defvjp(
    lambda block, *operands: jax.vjp(partial(_attend, block), *operands), lambda block, back, slope: back(slope)
)


def _attend(block: int, q, k, v, valid, keep, past: tuple[Past, ...]):
    if block >= q.shape[1]:
        return attend_block(q, (k, v, valid, keep), past, jnp.int32(0))
    return _attend_in_blocks(q, k, v, valid, keep, past, block)


def _attend_in_blocks(q, k, v, valid, keep, past, block):
    """Queries in blocks; a block reads only the keys up to the end of its group, so about half the work is saved."""
    tokens = q.shape[1]
    blocks = -(-tokens // block)
    per_group = -(-blocks // MAX_GROUPS)
    attend = jax.checkpoint(attend_block) if tokens > REMATERIALISE else attend_block
    outputs = []
    for first in range(0, blocks, per_group):
        start, end = first * block, min((first + per_group) * block, tokens)
        seen = tuple(None if x is None else x[:, :end] for x in (k, v, valid, keep))
        whole = (end - start) // block
        if whole > 1:
            queries = q[:, start : start + whole * block].reshape(q.shape[0], whole, block, *q.shape[2:])
            starts = start + block * jnp.arange(whole, dtype=jnp.int32)
            out = lax.map(
                lambda item, seen=seen: attend(item[0], seen, past, item[1]), (jnp.moveaxis(queries, 1, 0), starts)
            )
            outputs.append(jnp.moveaxis(out, 0, 1).reshape(q.shape[0], whole * block, *q.shape[2:]))
            start += whole * block
        while start < end:
            stop = min(start + block, end)
            outputs.append(attend(q[:, start:stop], seen, past, jnp.int32(start)))
            start = stop
    return jnp.concatenate(outputs, axis=1)


# Products are written as batches of matrices, the queries of a group one below the other: as an einsum over the same
# axes they take XLA two to three times as long on CPU.
MATRIX_PRODUCT = (((2,), (1,)), ((0,), (0,)))


def query_key_scores(q: Array, k: Array) -> Array:
    """q . k / sqrt(dim), float32 [batch, kv_heads, group, queries, keys].

    `q` is [batch, queries, kv_heads, group, dim], `k` is [batch, keys, kv_heads, dim].
    """
    batch, queries, heads, group, dim = q.shape
    rows = q.transpose(0, 2, 3, 1, 4).reshape(batch * heads, group * queries, dim)
    columns = k.transpose(0, 2, 3, 1).reshape(batch * heads, dim, k.shape[1])
    scores = lax.dot_general(rows, columns, MATRIX_PRODUCT, preferred_element_type=jnp.float32)
    return scores.reshape(batch, heads, group, queries, k.shape[1]) * dim**-0.5


def attend_block(q, seen, past: tuple[Past, ...], start):
    """Dense attention of the queries `start ..` [batch, queries, kv_heads, group, dim] to all keys given.

    `seen`: (k, v, valid or None, keep or None) as in `attention`; keep may also be one a query, [batch, queries, keys].
    """
    k, v, valid, keep = seen
    row = start + jnp.arange(q.shape[1])[None, :, None]
    column = jnp.arange(k.shape[1])[None, None, :]
    own = row == column
    allowed = column <= row  # [batch or 1, queries, keys]
    if valid is not None:
        allowed = (allowed & valid[:, None, :]) | own
    scores = query_key_scores(q, k)
    weight = None
    if keep is not None:
        by_query = keep.astype(jnp.float32)
        weight = jnp.where(own, 1.0, by_query if keep.ndim == 3 else by_query[:, None, :]) * allowed
        weight = weight[:, None, None]
        top = jnp.max(jnp.where(weight > 0, scores, -jnp.inf), axis=-1, keepdims=True)
    else:
        # Written out: fused into every loop that reads them, the mask makes these up to three times as slow on CPU.
        scores = lax.optimization_barrier(jnp.where(allowed[:, None, None], scores, -jnp.inf))
        top = jnp.max(scores, axis=-1, keepdims=True)
    earlier = []
    for part in past:
        part_scores, part_keep = _past_scores(q, part)
        part_counted = part_scores if part_keep is None else jnp.where(part_keep > 0, part_scores, -jnp.inf)
        top = jnp.maximum(top, jnp.max(part_counted, axis=-1, keepdims=True))
        earlier.append((part_scores, part_keep, part))
    top = lax.stop_gradient(top)  # the result does not depend on it

    if weight is None:
        mass = jnp.exp(scores - top)
    else:  # kept keys are below `top`; dropped ones may be far above it, and 0 * inf would be NaN
        mass = weight * jnp.exp(jnp.minimum(scores - top, MAX_EXPONENT))
    total = mass.sum(-1)
    out = _weighted_values(mass, v)
    for part_scores, part_keep, part in earlier:
        if part_keep is None:
            part_mass = jnp.exp(part_scores - top)
        else:
            part_mass = part_keep * jnp.exp(jnp.minimum(part_scores - top, MAX_EXPONENT))
        total = total + part_mass.sum(-1)
        if part.scales is None:
            out = out + _weighted_values(part_mass, part.v)
        else:
            out = out + _weighted_values(part_mass * _by_head(part.scales[1]), part.v.astype(v.dtype))
    total = jnp.moveaxis(total, 3, 1)[..., None]
    if weight is None and all(part_keep is None for _, part_keep, _ in earlier):
        return out / total
    held = lax.stop_gradient(total)  # may be as small as a weight, whose square, in a derivative, would be 0
    return (out / held) / (total / held)


def _past_scores(q: Array, past: Past) -> tuple[Array, Array | None]:
    """Scores of the slots in use, -inf at others [batch, kv_heads, group, queries, slots], and their keep values."""
    slots = jnp.arange(past.k.shape[1])
    if past.length.ndim == 1:
        there = (slots[None, :] < past.length[:, None])[:, None, None, None, :]
    else:
        there = (slots[None, None, :] < past.length[:, :, None])[:, :, None, None, :]
    if past.scales is None:
        scores = query_key_scores(q, past.k)
    else:
        scores = query_key_scores(q, past.k.astype(q.dtype)) * _by_head(past.scales[0])
    scores = lax.optimization_barrier(jnp.where(there, scores, -jnp.inf))
    return scores, None if past.keep is None else _by_head(past.keep)


def _by_head(x: Array) -> Array:
    """[batch, slots, kv_heads] beside scores: float32 [batch, kv_heads, 1, 1, slots]."""
    return jnp.moveaxis(x.astype(jnp.float32), 2, 1)[:, :, None, None, :]


def _weighted_values(mass: Array, v: Array) -> Array:
    """[batch, queries, kv_heads, group, d] of mass shaped as `query_key_scores` and v [batch, keys, kv_heads, d]."""
    batch, heads, group, queries, keys = mass.shape
    rows = mass.astype(v.dtype).reshape(batch * heads, group * queries, keys)
    columns = v.transpose(0, 2, 1, 3).reshape(batch * heads, keys, v.shape[3])
    out = lax.dot_general(rows, columns, MATRIX_PRODUCT, preferred_element_type=jnp.float32)
    return out.reshape(batch, heads, group, queries, v.shape[3]).transpose(0, 3, 1, 2, 4)
