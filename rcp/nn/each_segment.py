"""What a reading tells of each segment of a prompt, the prompt shortened to it or without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rcp.nn.layout import segment_lengths
from rcp.nn.lengths import in_parts, of_own_length
from rcp.nn.pruner import compact
from rcp.types import Batch


def widely(whole: int) -> list[int]:
    """A quarter and a half of a length, rounded up to multiples of 32, and `in_parts`: segments differ widely."""
    short = {-(-whole * part // 128) * 32 for part in (1, 2)}
    return sorted({n for n in short if n < whole} | set(in_parts(whole)))


def each_segment(
    value: Callable[[Batch], Any],
    keep: Callable[[Bool[Array, "batch tokens"]], Bool[Array, "batch tokens"]],
    batch: Batch,
    length: int,
    lengths: Callable[[int], list[int]] = widely,
) -> Any:
    """`value` of the prompts with the tokens that `keep` makes of each segment's in turn.

    Reads one segment of all examples at a time, so memory does not grow with their number: of every example its
    shortest first, so that those read together are about as long, padded to the least of a few static lengths.

    Args:
      value: of prompts, at the length they have: an array [batch, ...] or a tree of such, whose shapes and numbers
        must not hang on their padding.
      length: static, holds any of these prompts.
      lengths: the static lengths to choose from, in order, `length` the last of them.

    Returns:
      as `value`, [batch, segments, ...].
    """
    order = jnp.argsort(segment_lengths(batch), axis=1).astype(jnp.int32)
    shortened = of_own_length(lambda _, prompts: value(prompts), lengths)

    def one(segment: Int[Array, " batch"]) -> Any:
        return shortened(None, compact(batch, keep(batch.segment == segment[:, None]), length))

    rows, place = jnp.arange(order.shape[0])[:, None], jnp.argsort(order, axis=1)
    return jax.tree.map(lambda found: found[place, rows], jax.lax.map(one, order.T))
