"""Keep-labels for the objective "bce": from the task, or from what each segment does to the model's answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rcp.config import LabelConfig
from rcp.nn.gains import Read, gains_beside, gains_within
from rcp.nn.layout import segment_exists
from rcp.types import Batch


def segment_gains(config: LabelConfig, batch: Batch, read: Read, length: int) -> Float[Array, "batch segments"] | None:
    """What each segment does for the answer, nats a token; None where labels are the task's own.

    Args:
      read: the frozen model on prompts.
      length: static length that holds any prompt with one segment (only "alone" reads so short ones).
    """
    if config.source == "alone":
        return gains_beside(jnp.zeros(batch.role.shape, bool), batch, read, length)
    return gains_within(batch, read) if config.source == "leave_one_out" else None


def keep_labels(
    config: LabelConfig, batch: Batch, gains: Float[Array, "batch segments"] | None
) -> Float[Array, "batch segments"]:
    """Labels in [0, 1] from `segment_gains`; -1 where there is no segment or the task knows nothing."""
    if gains is None:
        return batch.support.astype(jnp.float32)
    there = segment_exists(batch)
    count = jnp.maximum(jnp.sum(there, axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    mean = jnp.sum(jnp.where(there, gains, 0.0), axis=1, keepdims=True) / count
    variance = jnp.sum(jnp.where(there, jnp.square(gains - mean), 0.0), axis=1, keepdims=True) / count
    standard = (gains - mean) * jax.lax.rsqrt(variance + 1e-6)
    return jnp.where(there, jax.nn.sigmoid(config.sharpness * (standard - config.above)), -1.0)
