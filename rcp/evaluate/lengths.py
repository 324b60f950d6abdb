"""Static lengths that hold the pieces of all prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rcp.data.pack import round_up
from rcp.types import Batch, Role

ROUND = 16
"""Static lengths are multiples of this, so that close lengths share one."""


LENGTHS = 8
"""The most static lengths of one sweep: each is compiled apart."""


def shared_lengths(needs: np.ndarray, whole: int) -> list[int]:
    """Static lengths, ascending, at most `LENGTHS` and none above `whole`, that serve batches of these needs well."""
    rounded = np.sort(np.minimum([round_up(int(need), ROUND) for need in needs], whole))
    lengths = np.unique(rounded)
    if len(lengths) > LENGTHS:  # as many batches to each, about, and the largest among them
        places = np.linspace(0, len(rounded) - 1, LENGTHS + 1)[1:].astype(int)
        lengths = np.unique(rounded[places])
    return lengths.tolist()


def longest(batches: Sequence[Batch], roles: Sequence[Role], segments: int = 0) -> int:
    """A static length that holds, of any prompt, its tokens of these roles and its `segments` longest segments."""
    need = 1
    for batch in batches:
        sizes = np.stack([np.sum(batch.segment == s, axis=1) for s in range(batch.support.shape[1])], axis=1)
        context = np.sort(sizes, axis=1)[:, ::-1][:, :segments].sum(axis=1)
        need = max(need, int(np.max(np.isin(batch.role, roles).sum(axis=1) + context)))
    return min(round_up(need, ROUND), batches[0].tokens.shape[1])
