"""What each segment does to the gold answer's likelihood under the reader: beside some others, or left out."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rcp.nn.each_segment import each_segment
from rcp.nn.layout import in_context
from rcp.nn.reader import Reading
from rcp.types import Batch

Read = Callable[[Batch], Reading]
"""The frozen model on prompts with their gold answers."""


def gains_beside(
    chosen: Bool[Array, "batch tokens"], batch: Batch, read: Read, length: int
) -> Float[Array, "batch segments"]:
    """-NLL of the answer, nats a token, with each segment in turn beside the `chosen` context tokens as the context.

    Args:
      chosen: none of them judges each segment alone.
      length: static, holds any prompt with the chosen tokens and one segment more.
    """
    always = ~in_context(batch) | chosen
    return -each_segment(lambda prompts: read(prompts).nll, lambda inside: always | inside, batch, length)


def gains_within(batch: Batch, read: Read) -> Float[Array, "batch segments"]:
    """NLL of the answer, nats a token, without each segment in turn: its gain within the whole, up to a constant."""
    return each_segment(lambda prompts: read(prompts).nll, lambda inside: ~inside, batch, batch.role.shape[1])


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
