"""A number for each segment of a prompt, read from the prompt shortened to it or without it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.layout import segment_lengths
from rcp.nn.pruner import compact
from rcp.types import Batch, Role

PARTS, MULTIPLE = 4, 32
"""Prompts are padded to a quarter, a half, three quarters or all of what holds the longest, rounded up to MULTIPLE."""


def each_segment(
    value: Callable[[Batch], Float[Array, " batch"]],
    keep: Callable[[Bool[Array, "batch tokens"]], Bool[Array, "batch tokens"]],
    batch: Batch,
    length: int,
) -> Float[Array, "batch segments"]:
    """`value` of the prompts with the tokens that `keep` makes of each segment's in turn.

    Reads one segment of all examples at a time, so memory does not grow with their number: of every example its
    shortest first, so that those read together are about as long, padded to the least of a few static lengths.

    Args:
      value: of prompts; what it gives must not hang on their padding.
      length: static, holds any of these prompts.
    """
    order = jnp.argsort(segment_lengths(batch), axis=1).astype(jnp.int32)
    parts = {-(-length * part // (PARTS * MULTIPLE)) * MULTIPLE for part in range(1, PARTS)}
    static = [*(n for n in sorted(parts) if n < length), length]

    def one(segment: Int[Array, " batch"]) -> Float[Array, " batch"]:
        kept = keep(batch.segment == segment[:, None]) & (batch.role != Role.PAD)
        longest = jnp.max(jnp.sum(kept, axis=1, dtype=jnp.int32))
        place = jnp.sum(longest > jnp.array(static[:-1], jnp.int32), dtype=jnp.int32)
        return jax.lax.switch(place, [lambda n=n: value(compact(batch, kept, n)) for n in static])

    return jnp.take_along_axis(jax.lax.map(one, order.T).T, jnp.argsort(order, axis=1), axis=1)
