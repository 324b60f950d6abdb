"""Static lengths: one compiled function for prompts of several, and those that hold the pieces of all prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from rcp.data.pack import round_up
from rcp.types import Batch, Role

ROUND = 16
"""Static lengths are multiples of this, so that close lengths share one."""


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


def longest(batches: Sequence[Batch], roles: Sequence[Role], segments: int = 0) -> int:
    """A static length that holds, of any prompt, its tokens of these roles and its `segments` longest segments."""
    need = 1
    for batch in batches:
        sizes = np.stack([np.sum(batch.segment == s, axis=1) for s in range(batch.support.shape[1])], axis=1)
        context = np.sort(sizes, axis=1)[:, ::-1][:, :segments].sum(axis=1)
        need = max(need, int(np.max(np.isin(batch.role, roles).sum(axis=1) + context)))
    return min(round_up(need, ROUND), batches[0].tokens.shape[1])
