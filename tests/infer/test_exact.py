"""The budget met to the token, against trying every mask."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.infer.exact import FAR, NEAR, Kept, closest, meet
from rcp.infer.prompt import PromptPruner, keep_and_rank
from rcp.nn.pruner import Cut, Granularity
from rcp.types import Role
from tests.infer.test_prompt import TEXT, Letters, score
from tests.nn.pruning import LENGTH, SEGMENTS, random_scores
from tests.nn.test_pruner import prompts
from tests.tiny import batch_of

pytestmark = pytest.mark.lax


def keep_best(rank: np.ndarray, forced: np.ndarray, budget: int) -> np.ndarray:
    order = np.argsort(np.where(forced, -1, rank), kind="stable")
    return np.isin(np.arange(len(rank)), order[: max(budget, forced.sum())])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_text_of_the_length_wanted_is_found_wherever_there_is_one(data):
    """Lengths of texts are any function of the mask: here of its number of tokens and of a random table."""
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    ranks = [rng.permutation(n) for n in sizes]
    forced = [rng.random(n) < 0.2 for n in sizes]
    odd = rng.integers(-1, data.draw(st.integers(1, 3)), 64)
    wanted = np.array([data.draw(st.integers(1, n + 1)) for n in sizes])

    def count(i: int, mask: np.ndarray) -> int:
        return max(0, int(mask.sum()) + int(odd[int(mask @ (1 << np.arange(len(mask))))])) if mask.any() else 0

    def at(budget: np.ndarray) -> list[Kept]:
        return [Kept(keep_best(r, f, n), np.where(f, -1, r)) for r, f, n in zip(ranks, forced, budget)]

    masks, unmended = meet(at, count, wanted, forced)
    for i, mask in enumerate(masks):
        every = [np.array(choice) | forced[i] for choice in product([False, True], repeat=sizes[i])]
        lengths = {count(i, other) for other in every}
        assert (mask | ~forced[i]).all(), "what is forced is kept"
        if wanted[i] in lengths:
            assert count(i, mask) == wanted[i]
        elif below := [length for length in lengths if length < wanted[i]]:
            assert count(i, mask) == max(below)
        budget = min(max(wanted[i], forced[i].sum(), 1), sizes[i])
        assert unmended[i] == count(i, keep_best(ranks[i], forced[i], budget))


@pytest.mark.parametrize("cut", ["end", "beginning"])
@pytest.mark.parametrize("granularity", ["token", "segment", "two_stage"])
@settings(max_examples=40, deadline=None)
@given(rows=st.tuples(prompts(), prompts()), budget=st.integers(0, LENGTH), seed=st.integers(0, 1000))
def test_what_a_budget_keeps_is_first_in_the_order_of_keeping(
    granularity: Granularity, cut: Cut, rows, budget: int, seed: int
):
    """Forced tokens apart: `closest` looks for the cut there."""
    batch = batch_of(rows, LENGTH, SEGMENTS)
    spend = np.full(2, budget, np.int32)
    found = keep_and_rank(random_scores(seed, batch), batch, spend, granularity=granularity, cut=cut)
    for row, (keep, rank) in enumerate(zip(*map(np.asarray, found))):
        free = np.flatnonzero((batch.role[row] == Role.CONTEXT) & ~batch.forced[row])
        order = free[np.argsort(rank[free], kind="stable")]
        assert sorted(keep[order], reverse=True) == keep[order].tolist()


def test_of_a_segment_cut_at_its_beginning_tokens_at_the_cut_are_flipped():
    """With its first letter the blank lines behind it come too: three tokens at once, so that two have to go."""
    pruner = PromptPruner(score, Letters(), "segment", cut="beginning")
    for asked, left in (
        (7, "the two"),
        (8, "n\n\nh two"),
        (9, "n\n\nhe two"),
        (10, "n\n\nthe two"),
        (11, "on\n\nthe two"),
    ):
        (found,) = pruner(["a question\n\nthe two"], ["q"], keep_tokens=asked)
        assert (found.text, found.kept) == (left, asked), "nothing far from the cut is flipped"


def test_the_least_change_nearest_to_the_cut_is_made():
    order, keep = np.array([3, 1, 4, 0, 2]), np.array([False, True, False, True, False])  # 3 and 1 are kept

    def costs(prices: list[int]):
        return lambda mask: int(mask @ np.array(prices))

    assert closest(keep, order, 3, costs([1] * 5)).tolist() == [False, True, False, True, True], "4 is next"
    assert closest(keep, order, 3, costs([1, 1, 1, 1, 9])).tolist() == [True, True, False, True, False], "4 is too long"
    swapped = closest(keep, order, 3, costs([2, 1, 2, 1, 2]))
    assert swapped.tolist() == [False, False, False, True, True], "1 makes way for 4"
    assert closest(keep, order, 2, costs([1] * 5)) is keep


def test_where_there_is_none_the_search_ends():
    tried = []

    def count(mask: np.ndarray) -> int:
        tried.append(mask)
        return 2 * int(mask.sum())

    keep = np.arange(1000) < 500
    assert count(closest(keep, np.arange(1000), 1001, count)) == 1000
    assert len(tried) <= 2 + FAR + 2**NEAR


class Merging(Letters):
    """Blank lines are one token, and so are two like letters side by side: dropping what parts them makes one."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for byte in text.encode():
            ids.append(byte if not ids or ids[-1] != byte else 1000 + ids.pop())
        return ids

    def decode(self, ids: list[int]) -> str:
        return super().decode([byte for i in ids for byte in ([i - 1000] * 2 if i >= 1000 else [i])])


@pytest.mark.parametrize("granularity", ["token", "segment", "two_stage"])
def test_the_text_has_the_tokens_asked_for(granularity):
    pruner = PromptPruner(score, Merging(), granularity)
    total, missed = len(Merging().encode(TEXT)), []
    for asked in range(1, total + 1):
        (found,) = pruner([TEXT], ["q"], keep_tokens=asked)
        assert found.kept == len(Merging().encode(found.text)) <= asked == found.asked
        assert bool(found.note) == (found.kept != asked)
        missed += [asked] * (found.kept != asked)
    assert not missed, "a text of letters can have any length"
    assert found.text == TEXT and found.unmended == total


def test_a_text_far_from_the_length_is_come_nearer_to_in_steps():
    """More flips than one search tries at once, from below and from above."""
    for start, wanted in ((0, 40), (100, 57)):
        keep = np.arange(100) < start
        found = closest(keep, np.arange(100), wanted, lambda mask: int(mask.sum()))
        assert found.sum() == wanted
