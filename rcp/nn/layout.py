"""Which tokens of a batch belong to what: to the context, to a segment of it, to the padding at the right end.

Batches may hold numpy or jax arrays. Segments are numbered 0 .. S - 1, S being the width of `batch.support`; a number
that no token has is an empty segment.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from rcp.types import Batch, Role


def in_context(batch: Batch) -> Bool[Array, "batch tokens"]:
    """Which tokens are context."""
    return jnp.asarray(batch.role) == Role.CONTEXT


def without(batch: Batch, role: Role) -> Batch:
    """The prompts with the tokens of a role as padding, in their place."""
    return batch._replace(role=jnp.where(jnp.asarray(batch.role) == role, jnp.int8(Role.PAD), jnp.asarray(batch.role)))


def prompt_lengths(batch: Batch) -> Int[Array, " batch"]:
    """Tokens of each prompt, int32 [batch]: all that is not padding. They are the first ones of their row."""
    return jnp.sum(jnp.asarray(batch.role) != Role.PAD, axis=1, dtype=jnp.int32)


def first_tokens(lengths: Int[Array, " batch"], tokens: int) -> Bool[Array, "batch tokens"]:
    """True at the first `lengths` of `tokens` places of each row."""
    return jnp.arange(tokens, dtype=jnp.int32)[None] < lengths[:, None]


def context_tokens(batch: Batch) -> Int[Array, " batch"]:
    """Number of context tokens of each example, int32 [batch]."""
    return jnp.sum(in_context(batch), axis=1, dtype=jnp.int32)


def membership(batch: Batch) -> Bool[Array, "batch tokens segments"]:
    """Whether a token belongs to a context segment."""
    numbers = jnp.arange(batch.support.shape[1], dtype=jnp.int32)[None, None]
    return (jnp.asarray(batch.segment)[..., None] == numbers) & in_context(batch)[..., None]


def segment_lengths(batch: Batch) -> Int[Array, "batch segments"]:
    """Tokens of each context segment, int32 [batch, segments]; 0 where there is no such segment."""
    return jnp.sum(membership(batch), axis=1, dtype=jnp.int32)


def free_lengths(batch: Batch) -> Int[Array, "batch segments"]:
    """Tokens of each context segment that are not forced, int32 [batch, segments]."""
    free = ~jnp.asarray(batch.forced)
    return jnp.sum(membership(batch) & free[..., None], axis=1, dtype=jnp.int32)


def segment_exists(batch: Batch) -> Bool[Array, "batch segments"]:
    """Which segments have tokens."""
    return jnp.any(membership(batch), axis=1)


def segment_means(values: Float[Array, "batch tokens *dim"], batch: Batch) -> Float[Array, "batch segments *dim"]:
    """Mean of a per-token value over each context segment, float32; 0 where it has no token."""
    member = membership(batch).astype(jnp.float32)
    total = jnp.einsum("bts,bt...->bs...", member, values)
    count = jnp.maximum(segment_lengths(batch), 1).astype(jnp.float32)
    return total / jnp.expand_dims(count, tuple(range(2, values.ndim)))


def of_segment(values: Shaped[Array, "batch segments"], batch: Batch) -> Shaped[Array, "batch tokens"]:
    """The value of each token's segment. Outside the context it means nothing (that of segment 0)."""
    number = jnp.clip(jnp.asarray(batch.segment), 0, values.shape[1] - 1)
    return jnp.take_along_axis(values, number, axis=1)


def groups(batch: Batch) -> Int[Array, "batch tokens"]:
    """A number for each piece of a prompt: a context segment's own, and S + role for every other piece."""
    role = jnp.asarray(batch.role).astype(jnp.int32)
    return jnp.where(in_context(batch), jnp.asarray(batch.segment), batch.support.shape[1] + role)


def places(batch: Batch) -> Int[Array, "batch tokens"]:
    """Place of each token in its piece, from 0, int32 [batch, tokens]. The tokens of a piece stand side by side."""
    group = groups(batch)
    index = jnp.arange(group.shape[1], dtype=jnp.int32)[None]
    first = jnp.concatenate([jnp.ones_like(group[:, :1], bool), group[:, 1:] != group[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
