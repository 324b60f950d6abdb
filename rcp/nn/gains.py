"""What each segment does to the gold answer's likelihood under the reader: beside some others, or left out."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcp.nn.layout import in_context, segment_lengths
from rcp.nn.pruner import compact
from rcp.nn.reader import Reading
from rcp.types import Batch, Role

PARTS, MULTIPLE = 4, 32
"""Prompts are padded to a quarter, a half, three quarters or all of what holds the longest, rounded up to MULTIPLE."""
Read = Callable[[Batch], Reading]
"""The frozen model on prompts with their gold answers."""


def gains_beside(
    chosen: Bool[Array, "batch tokens"], batch: Batch, read: Read, length: int
) -> Float[Array, "batch segments"]:
    """-NLL of the answer, nats a token, with each segment in turn beside the `chosen` context tokens as the context.

    Reads one segment of all examples at a time, so memory does not grow with their number: of every example its
    shortest first, so that those read together are about as long, padded to the least of a few static lengths.

    Args:
      chosen: none of them judges each segment alone.
      length: static, holds any prompt with the chosen tokens and one segment more.
    """
    return -_with_each(lambda inside: chosen | inside, batch, read, length)


def gains_within(batch: Batch, read: Read) -> Float[Array, "batch segments"]:
    """NLL of the answer, nats a token, without each segment in turn: its gain within the whole, up to a constant."""
    return _with_each(lambda inside: ~inside, batch, read, batch.role.shape[1])


def gains_of_tokens(
    batch: Batch, nll: Callable[[Float[Array, "batch tokens"]], Float[Array, " batch"]]
) -> Float[Array, "batch tokens"]:
    """What each context token does for the answer, to first order: minus d NLL / d keep at a mask of ones; else 0.

    Leaving one token out changes the NLL by about this much (Taylor's first term in the keep-mask, which multiplies
    attention): one backward pass in place of a reading a token.

    Args:
      nll: of the answer, nats a token, read through a keep-mask.
    """
    slope = jax.grad(lambda keep: jnp.sum(nll(keep)))(jnp.ones(batch.role.shape, jnp.float32))
    return jnp.where(in_context(batch), -slope, 0.0)


def _with_each(context: Callable[[Array], Array], batch: Batch, read: Read, length: int) -> Array:
    """NLL with the context tokens that `context` makes of each segment's."""
    order = jnp.argsort(segment_lengths(batch), axis=1).astype(jnp.int32)
    parts = {-(-length * part // (PARTS * MULTIPLE)) * MULTIPLE for part in range(1, PARTS)}
    static = [*(n for n in sorted(parts) if n < length), length]

    def one(segment: Int[Array, " batch"]) -> Float[Array, " batch"]:
        keep = ~in_context(batch) | context(batch.segment == segment[:, None])
        longest = jnp.max(jnp.sum(keep & (batch.role != Role.PAD), axis=1, dtype=jnp.int32))
        place = jnp.sum(longest > jnp.array(static[:-1], jnp.int32), dtype=jnp.int32)
        return jax.lax.switch(place, [lambda n=n: read(compact(batch, keep, n)).nll for n in static])

    return jnp.take_along_axis(jax.lax.map(one, order.T).T, jnp.argsort(order, axis=1), axis=1)
