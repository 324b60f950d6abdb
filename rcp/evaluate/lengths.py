"""One compiled function for prompts of several static lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Int

from rcp.types import Batch


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


def shortened(batch: Batch, length: int) -> Batch:
    """The first `length` tokens of every prompt."""
    names = ("tokens", "role", "segment", "forced")
    return batch._replace(**{name: getattr(batch, name)[:, :length] for name in names})
