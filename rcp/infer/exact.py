"""The budget met to the token, counted in the text that is left.

Tokens of a prompt do not add up to tokens of its text: what was apart merges where the tokens between are gone, and a
segment that is cut keeps the white space that parts it from its neighbours. So as many tokens as were asked for may
leave a text that is too long or too short. Two steps mend that: the largest number of tokens whose text is not too long
is found by halving an interval, and what is still missing by flipping single tokens near the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, zip_longest
from typing import NamedTuple

import numpy as np

NEAR = 10  # places next to the cut of which every set is tried
FAR = 256  # places of which every single one is tried


class Kept(NamedTuple):
    """Which context tokens a budget keeps, bool [context]; and the order of keeping: lowest first, ties by place.

    A budget keeps the forced tokens, and of the others the first in this order: the cut is behind them.
    """

    mask: np.ndarray
    rank: np.ndarray


def meet(
    at: Callable[[np.ndarray], list[Kept]],
    count: Callable[[int, np.ndarray], int],
    wanted: np.ndarray,
    forced: Sequence[np.ndarray],
) -> tuple[list[np.ndarray], list[int]]:
    """For each of a batch of prompts a mask whose text has `wanted` tokens, or nearly; see `closest`.

    Args:
      at: what budgets of context tokens [prompts] keep.
      count: tokens of the text that a mask leaves of a prompt, given its number and the mask.
      wanted: tokens that the text of each prompt shall have.
      forced: bool [context] for each prompt; always kept, even where their text has more tokens than wanted.

    Returns:
      the masks, and the tokens of the texts when just `wanted` tokens of each context are kept.
    """
    fits = np.array([max(int(own.sum()), 1) for own in forced])
    above = np.array([len(own) for own in forced]) + 1
    budget = np.clip(wanted, fits, above - 1)
    kept = at(budget)
    counts = unmended = [count(i, found.mask) for i, found in enumerate(kept)]
    while np.any(undecided := above - fits > 1):
        for i in np.flatnonzero(undecided):
            if counts[i] > wanted[i]:
                above[i] = budget[i]
            else:
                fits[i] = budget[i]
            if counts[i] == wanted[i]:
                above[i] = fits[i] + 1
        budget = (fits + above) // 2
        kept = at(budget)
        counts = [count(i, found.mask) if above[i] - fits[i] > 1 else 0 for i, found in enumerate(kept)]
    masks = []
    for i, (mask, rank) in enumerate(at(fits)):
        order = np.argsort(rank, kind="stable")
        masks.append(closest(mask, order[~forced[i][order]], int(wanted[i]), partial(count, i)))
    return masks, unmended


def closest(keep: np.ndarray, order: np.ndarray, wanted: int, count: Callable[[np.ndarray], int]) -> np.ndarray:
    """The mask next to `keep` whose text has `wanted` tokens; else the one that has most of those that have fewer.

    Where no more than `NEAR` places may be flipped, every mask is tried: a text of just this length is found if there
    is one. Of longer contexts about 1,300 masks are tried, and as many again from the best of them as long as that
    comes nearer; experiments/budget_exact.py says how often that suffices.

    Args:
      keep: bool [context].
      order: places that may be flipped, in the order in which they would be kept. The others are as in `keep`.
      wanted: tokens that the text shall have.
      count: tokens of the text that a mask leaves.
    """
    tokens, before = count(keep), -1
    while tokens not in (wanted, before):
        before = tokens
        keep, tokens = _nearer(keep, tokens, order, wanted, count)
    return keep


def _nearer(
    keep: np.ndarray, start: int, order: np.ndarray, wanted: int, count: Callable[[np.ndarray], int]
) -> tuple[np.ndarray, int]:
    """`closest` among the masks next to one whose text has `start` tokens, and the tokens of its text."""
    # The cut is behind the first places of the order. Dropped ones come before kept ones that are equally near to it.
    distance = np.abs(np.arange(len(order)) - (keep[order].sum() - 0.25))
    near = order[np.argsort(distance, kind="stable")].tolist()
    best, most, idle = keep, start, set(near[FAR:])
    for places in _flips(near, keep, idle):
        changed = keep.copy()
        changed[list(places)] ^= True
        tokens = count(changed)
        if tokens == wanted:
            return changed, tokens
        if tokens < most if most > wanted else most < tokens < wanted:
            best, most = changed, tokens
        if len(places) == 1 and tokens == start:
            idle.add(places[0])
    return best, most


def _flips(near: list[int], keep: np.ndarray, idle: set[int]) -> Iterator[tuple[int, ...]]:
    """Sets of places to flip: each of the first `FAR`, then several of `NEAR`, smaller and nearer sets first.

    The several are dropped and kept places in turn. Last come `idle` ones, which alone changed nothing, as white space
    at the end of a cut segment does; the caller adds to them while it tries the single ones.
    """
    yield from combinations(near[:FAR], 1)
    telling = sorted(near, key=lambda place: place in idle)
    sides = [[place for place in telling if keep[place] == side] for side in (False, True)]
    some = [place for pair in zip_longest(*sides) for place in pair if place is not None][:NEAR]
    for size in range(2, NEAR + 1):
        yield from combinations(some, size)
