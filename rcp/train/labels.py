"""Keep-labels for the objective "bce": from the task, or from what each segment does to the model's answer."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rcp.config import LabelConfig
from rcp.nn.layout import in_context, segment_exists, segment_lengths
from rcp.nn.pruner import compact
from rcp.nn.reader import Reading
from rcp.types import Batch

Read = Callable[[Batch], Reading]


def keep_labels(config: LabelConfig, batch: Batch, read: Read, length: int) -> Float[Array, "batch segments"]:
    """Labels in [0, 1], -1 where there is no segment or the task knows nothing.

    Args:
      read: the frozen model on prompts.
      length: static length that holds any prompt with one segment (only "alone" reads so short ones).
    """
    if config.source == "support":
        return batch.support.astype(jnp.float32)
    gains = segment_gains(config.source == "alone", batch, read, length)
    there = segment_exists(batch)
    count = jnp.maximum(jnp.sum(there, axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    mean = jnp.sum(jnp.where(there, gains, 0.0), axis=1, keepdims=True) / count
    variance = jnp.sum(jnp.where(there, jnp.square(gains - mean), 0.0), axis=1, keepdims=True) / count
    standard = (gains - mean) * jax.lax.rsqrt(variance + 1e-6)
    return jnp.where(there, jax.nn.sigmoid(config.sharpness * (standard - config.above)), -1.0)


def segment_gains(alone: bool, batch: Batch, read: Read, length: int) -> Float[Array, "batch segments"]:
    """How much each segment helps, in nats a token of the answer, up to a constant an example.

    `alone`: -NLL with that segment as the whole context. Else leave-one-out: NLL without the segment (less the constant
    NLL with all of them). Reads one segment of all examples at a time, so memory does not grow with their number: of
    every example its shortest first, so that those read together are about as long.
    """
    static = length if alone else batch.role.shape[1]
    order = jnp.argsort(segment_lengths(batch), axis=1).astype(jnp.int32)

    def one(segment: Int[Array, " batch"]) -> Float[Array, " batch"]:
        inside = batch.segment == segment[:, None]
        keep = ~in_context(batch) | (inside if alone else ~inside)
        nll = read(compact(batch, keep, static)).nll
        return -nll if alone else nll

    return jnp.take_along_axis(jax.lax.map(one, order.T).T, jnp.argsort(order, axis=1), axis=1)
