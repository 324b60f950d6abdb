"""One compiled function for prompts of several static lengths, so that short prompts cost what short prompts cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rcp.nn.layout import prompt_lengths
from rcp.types import Batch

PARTS = (0.55, 0.7, 0.85, 1.0)
"""The shares of a static length that `of_own_length` chooses from, where it is not told others."""


def of_lengths(function: Callable[[Any, Batch], Any], lengths: Sequence[int]) -> Callable[..., Any]:
    """`function(params, batch)` as a function of (params, batch, number) that gets `lengths[number]` tokens of a batch.

    The number is traced: one compile serves all lengths, and none of them reads the padding of another. Batches are
    compacted to the largest length; the results of all lengths have the same shapes.
    """

    def cut(length: int) -> Callable[[Any, Batch], Any]:
        return lambda params, batch: function(params, shortened(batch, length))

    branches = [cut(length) for length in lengths]

    def switched(params: Any, batch: Batch, number: Int[Array, ""]) -> Any:
        return jax.lax.switch(number, branches, params, batch)

    return switched


def padded(tokens: int) -> int:
    """The smallest of 64, 128, 256, ... that holds so many tokens: a static length for texts of any length."""
    return 64 << max(0, (tokens - 1).bit_length() - 6)


def doubled(longest: int) -> list[int]:
    """All that are below `longest`, and itself."""
    return [64 << n for n in range(longest.bit_length()) if 64 << n < longest] + [longest]


def in_parts(whole: int) -> list[int]:
    """`PARTS` of a length, rounded up to multiples of 8."""
    return sorted({-(-int(whole * part) // 8) * 8 if part < 1 else whole for part in PARTS})


def of_own_length(
    function: Callable[[Any, Batch], Any], choice: Callable[[int], list[int]] = in_parts
) -> Callable[[Any, Batch], Any]:
    """`function(params, batch)` on the shortest of several static lengths that holds all its prompts.

    A static length must hold the longest prompt of a whole data set; most batches need less of it.

    Args:
      choice: from the batch's own static length to those to choose from, in order.
    """

    def chosen(params: Any, batch: Batch) -> Any:
        whole = batch.role.shape[1]
        lengths = choice(whole)
        needed = jnp.max(prompt_lengths(batch))
        number = jnp.sum(needed > jnp.asarray(lengths[:-1], jnp.int32), dtype=jnp.int32)
        return of_lengths(function, lengths)(params, batch, number)

    return chosen


def shortened(batch: Batch, length: int) -> Batch:
    """The first `length` tokens of every prompt."""
    names = ("tokens", "role", "segment", "forced")
    return batch._replace(**{name: getattr(batch, name)[:, :length] for name in names})
