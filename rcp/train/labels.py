"""Keep-labels, as "bce" learns them: from the task, or from what segments or tokens do to the model's answer."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rcp.config import LabelConfig
from rcp.nn.gains import Read, gains_beside, gains_of_tokens, gains_within
from rcp.nn.layout import in_context, membership, segment_exists
from rcp.objectives import Labels
from rcp.types import Batch

ALIKE = 1e-5
"""Nats a token: gains whose standard deviation is below are the same but for rounding, and label nothing."""
READ_FOR = ("alone", "leave_one_out")
"""Sources for which the frozen model reads (`segment_gains`), so that they can be computed once."""


def segment_gains(config: LabelConfig, batch: Batch, read: Read, length: int) -> Float[Array, "batch segments"] | None:
    """What each segment does for the answer, nats a token; None where no labels are made of that.

    Args:
      read: the frozen model on prompts.
      length: static length that holds any prompt with one segment (only "alone" reads so short ones).
    """
    if config.source == "alone":
        return gains_beside(jnp.zeros(batch.role.shape, bool), batch, read, length)
    return gains_within(batch, read) if config.source == "leave_one_out" else None


def keep_labels(
    config: LabelConfig,
    batch: Batch,
    gains: Float[Array, "batch segments"] | None,
    nll: Callable[[Float[Array, "batch tokens"]], Float[Array, " batch"]],
) -> Labels:
    """Labels of the segments, and of the tokens where the source tells them apart; -1 is unknown.

    Args:
      gains: `segment_gains` of this batch.
      nll: of the answers, read through a keep-mask (only "tokens" does).
    """
    if config.source == "support":
        return Labels(batch.support.astype(jnp.float32))
    there = segment_exists(batch)
    if config.source == "tokens":
        of_tokens = gains_of_tokens(batch, nll)
        total = jnp.einsum("bts,bt->bs", membership(batch).astype(jnp.float32), of_tokens)
        context = in_context(batch)
        scale = jnp.sum(context, axis=1, keepdims=True, dtype=jnp.float32)  # far above `ALIKE`
        return Labels(_soft(config, total, there), _soft(config, scale * of_tokens, context))
    assert gains is not None
    return Labels(_soft(config, gains, there))


def _soft(
    config: LabelConfig, gains: Float[Array, "batch n"], there: Bool[Array, "batch n"]
) -> Float[Array, "batch n"]:
    """sigmoid(sharpness * (z - above)), z the gain standardised within the example; -1, unknown, where nothing is there
    and where gains do not differ, of a single item above all: they would all get the label of the mean, and learn that
    nothing is to be kept."""
    count = jnp.maximum(jnp.sum(there, axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    mean = jnp.sum(jnp.where(there, gains, 0.0), axis=1, keepdims=True) / count
    variance = jnp.sum(jnp.where(there, jnp.square(gains - mean), 0.0), axis=1, keepdims=True) / count
    standard = (gains - mean) * jax.lax.rsqrt(jnp.maximum(variance, ALIKE**2))
    there = there & (variance > ALIKE**2)
    return jnp.where(there, jax.nn.sigmoid(config.sharpness * (standard - config.above)), -1.0)
