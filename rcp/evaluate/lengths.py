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
    """Static lengths, ascending, at most `LENGTHS` and none above `whole`, that serve batches of these needs best.

    Each batch takes the smallest that holds it; of all choices this one reads the fewest tokens. (Dynamic programming:
    the cheapest way to serve the batches up to each length with so many lengths, that one the last.)
    """
    lengths, batches = np.unique([min(round_up(int(need), ROUND), whole) for need in needs], return_counts=True)
    upto = np.concatenate([[0], np.cumsum(batches)])
    own = [[int(length * (upto[j + 1] - upto[i])) for i in range(j + 1)] for j, length in enumerate(lengths)]
    best = [(row[0], [j]) for j, row in enumerate(own)]  # of the first j + 1 lengths: tokens read, the places chosen
    for _ in range(LENGTHS - 1):
        more = [
            min((best[i - 1][0] + own[j][i], [*best[i - 1][1], j]) for i in range(1, j + 1)) if j else best[0]
            for j in range(len(lengths))
        ]
        best = [min(old, new) for old, new in zip(best, more)]
    return lengths[best[-1][1]].tolist()


def longest(batches: Sequence[Batch], roles: Sequence[Role], segments: int = 0) -> int:
    """A static length that holds, of any prompt, its tokens of these roles and its `segments` longest segments."""
    need = 1
    for batch in batches:
        sizes = np.stack([np.sum(batch.segment == s, axis=1) for s in range(batch.support.shape[1])], axis=1)
        context = np.sort(sizes, axis=1)[:, ::-1][:, :segments].sum(axis=1)
        need = max(need, int(np.max(np.isin(batch.role, roles).sum(axis=1) + context)))
    return min(round_up(need, ROUND), batches[0].tokens.shape[1])
