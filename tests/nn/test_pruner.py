"""The budget and the guarantees at every granularity, budgets of rates, compacting."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.nn import pruner
from rcp.nn.pruner import Scores
from rcp.types import Batch, Role
from tests.nn.pruning import FORCED, GRANULARITIES, LENGTH, SEGMENTS, TRACES, prune, random_scores
from tests.tiny import Prompt, batch_of


@st.composite
def prompts(draw) -> Prompt:
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=SEGMENTS).filter(any))
    places = [(segment, place) for segment, size in enumerate(sizes) for place in range(size)]
    forced = draw(st.lists(st.sampled_from(places), max_size=4))
    return Prompt(tuple(sizes), draw(st.integers(0, 1)), 1, draw(st.integers(1, 2)), tuple(forced))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_exactly_the_budget_is_kept_and_the_guarantees_hold(granularity):
    """Ties, infinite scores, budgets of 0 and beyond the context; one compile for all of them."""
    TRACES.clear()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        rows=st.tuples(prompts(), prompts()),
        budget=st.tuples(*[st.integers(0, LENGTH + 3)] * 2),
        scale=st.sampled_from((0.0, 1.0, 1e4, np.inf)),
        seed=st.integers(0, 1000),
        sampled=st.booleans(),
    )
    def check(rows, budget, scale, seed, sampled):
        batch = batch_of(rows, LENGTH, SEGMENTS)
        scores = random_scores(seed, batch, scale)
        keys = jax.random.split(jax.random.key(seed), 2) if sampled else None
        pruned = prune(scores, batch, np.asarray(budget, np.int32), granularity, keys)
        context = batch.role == Role.CONTEXT
        forced = batch.forced & context
        keep = np.asarray(pruned.keep)
        expected = np.minimum(np.maximum(budget, forced.sum(1)), context.sum(1))
        np.testing.assert_array_equal((keep & context).sum(1), expected)
        np.testing.assert_array_equal(pruned.kept, expected)
        np.testing.assert_array_equal(pruned.asked, budget)
        assert keep[forced].all()
        assert keep[(batch.role != Role.CONTEXT) & (batch.role != Role.PAD)].all()
        assert not keep[batch.role == Role.PAD].any()

    check()
    assert sorted(TRACES) == [(granularity, False), (granularity, True)]


def naive_segments(sizes, order, budget, cut="end") -> list[tuple[int, int]]:
    """(segment, place) of the tokens kept: whole segments in order, of the one that crosses the end not cut off."""
    kept = []
    for segment in order:
        places = range(sizes[segment])
        kept += [(segment, place) for place in (places if cut == "end" else places[::-1])][: budget - len(kept)]
    return kept


def mask_of(batch: Batch, row: int, kept) -> np.ndarray:
    """The keep-mask of a row with these (segment, place) and everything outside the context."""
    mask = (batch.role[row] != Role.PAD) & (batch.role[row] != Role.CONTEXT)
    for segment, place in kept:
        mask[np.flatnonzero(batch.segment[row] == segment)[place]] = True
    return mask


ROWS = (Prompt((2, 3, 1)), Prompt((1, 4, 2, 3), instruction=0))


@pytest.mark.parametrize("cut", ["end", "beginning"])
@pytest.mark.parametrize("budget", range(0, 12))
def test_segments_go_whole_and_in_the_order_of_their_scores(budget, cut):
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    scores = random_scores(budget, batch)
    pruned = prune(scores, batch, np.full(2, budget, np.int32), "segment", cut=cut)
    for row, prompt in enumerate(ROWS):
        order = np.argsort(-scores.segments[row, : len(prompt.segments)])
        expected = mask_of(batch, row, naive_segments(prompt.segments, order, budget, cut))
        np.testing.assert_array_equal(pruned.keep[row], expected)


def test_a_segment_that_is_forced_as_a_whole_is_drawn_first():
    prompt = Prompt((2, 3, 2), forced=((2, 0), (2, 1)))
    batch = batch_of((prompt,), LENGTH, SEGMENTS)
    scores = Scores(np.zeros((1, LENGTH), np.float32), np.asarray([[3, 9, -9, 0, 0]], np.float32))
    pruned = prune(scores, batch, np.asarray([4], np.int32), "segment")
    # It is drawn first; then the best one, cut.
    np.testing.assert_array_equal(pruned.keep[0], mask_of(batch, 0, [(2, 0), (2, 1), (1, 0), (1, 1)]))
    assert pruned.segment_rank[0, :3].tolist() == [2, 1, 0] and pruned.drawn.tolist() == [2]
    pruned = prune(scores, batch, np.asarray([1], np.int32), "segment")
    np.testing.assert_array_equal(pruned.keep[0], mask_of(batch, 0, [(2, 0), (2, 1)]))
    assert pruned.drawn.tolist() == [1]


def test_a_forced_token_behind_the_cut_displaces_the_last_one_before_it():
    """Its segment is not drawn for it: the scores choose among segments."""
    prompt = Prompt((2, 3, 2), forced=((2, 1),))
    batch = batch_of((prompt,), LENGTH, SEGMENTS)
    scores = Scores(np.zeros((1, LENGTH), np.float32), np.asarray([[3, 9, -9, 0, 0]], np.float32))
    for budget, kept, drawn in (
        (1, [(2, 1)], 0),
        (3, [(1, 0), (1, 1), (2, 1)], 1),
        (4, [(1, 0), (1, 1), (1, 2), (2, 1)], 1),
        (5, [(0, 0), (1, 0), (1, 1), (1, 2), (2, 1)], 2),
    ):
        pruned = prune(scores, batch, np.asarray([budget], np.int32), "segment")
        np.testing.assert_array_equal(pruned.keep[0], mask_of(batch, 0, kept))
        assert pruned.segment_rank[0, :3].tolist() == [1, 0, 2] and pruned.drawn.tolist() == [drawn]


@pytest.mark.parametrize("cut", ["end", "beginning"])
def test_beside_forced_tokens_the_best_segments_fill_what_is_left_of_the_budget(cut):
    """Against filling token by token; the draw ends with the segment that fills the budget."""

    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(rows=st.tuples(prompts(), prompts()), budget=st.integers(0, LENGTH + 3), seed=st.integers(0, 1000))
    def check(rows, budget, seed):
        batch = batch_of(rows, LENGTH, SEGMENTS)
        scores = random_scores(seed, batch)
        pruned = prune(scores, batch, np.full(2, budget, np.int32), "segment", cut=cut)
        for row, prompt in enumerate(rows):
            sizes, forced = prompt.segments, set(prompt.forced)
            there = [s for s, size in enumerate(sizes) if size]
            whole = [s for s in there if all((s, place) in forced for place in range(sizes[s]))]
            rest = sorted((s for s in there if s not in whole), key=lambda s: -scores.segments[row, s])
            kept, looked = set(forced), len(whole)
            for segment in rest:
                looked += len(kept) < budget
                places = range(sizes[segment])
                for place in places if cut == "end" else places[::-1]:
                    if len(kept) < budget:
                        kept.add((segment, place))
            np.testing.assert_array_equal(pruned.keep[row], mask_of(batch, row, kept))
            assert pruned.drawn[row] == looked

    check()


def test_two_stages_keep_forced_tokens_of_segments_that_were_not_drawn():
    prompt = Prompt((2, 4, 2), forced=((2, 1),))
    batch = batch_of((prompt,), LENGTH, SEGMENTS)
    tokens = np.arange(LENGTH, dtype=np.float32)[None]
    pruned = prune(
        Scores(tokens, np.asarray([[3, 9, -9, 0, 0]], np.float32)), batch, np.asarray([2], np.int32), "two_stage"
    )
    assert pruned.drawn.tolist() == [1]
    np.testing.assert_array_equal(pruned.keep[0], mask_of(batch, 0, [(1, 3), (2, 1)]))


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8])
def test_two_stages_take_the_best_tokens_of_the_best_segments(budget):
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    scores = random_scores(budget, batch)
    tokens = prune(scores, batch, np.full(2, budget, np.int32), "token").keep
    both = prune(scores, batch, np.full(2, budget, np.int32), "two_stage").keep
    for row, prompt in enumerate(ROWS):
        order = np.argsort(-scores.segments[row, : len(prompt.segments)])
        ahead = np.cumsum([0, *np.asarray(prompt.segments)[order][:-1]])
        let_through = set(order[ahead < pruner.EXPAND * budget])
        for keep, pool in ((tokens, set(order)), (both, let_through)):
            places = [t for t in np.flatnonzero(batch.role[row] == Role.CONTEXT) if batch.segment[row, t] in pool]
            best = sorted(places, key=lambda t: -scores.tokens[row, t])[:budget]
            found = np.flatnonzero(np.asarray(keep[row]) & (batch.role[row] == Role.CONTEXT))
            np.testing.assert_array_equal(found, sorted(best))


def test_an_example_is_pruned_the_same_in_any_company():
    """Its draw depends on its own key, not on its neighbours or on how the batch is split."""
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    scores = random_scores(0, batch)
    keys = jax.random.split(jax.random.key(3), 2)
    budget = np.asarray([3, 5], np.int32)
    for granularity in GRANULARITIES:
        whole = prune(scores, batch, budget, granularity, keys)
        swapped = jax.tree.map(lambda x: x[::-1], (scores, batch, budget, keys))
        other = prune(*swapped[:3], granularity, swapped[3])
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[::-1]), whole, other)


@pytest.mark.parametrize("total", [7, 100, 1000, 25_700, 32_768])
def test_a_whole_product_of_rate_and_length_is_not_rounded_down(total):
    batch = batch_of((Prompt((1,)),), LENGTH, SEGMENTS)._replace(role=np.full((1, total), Role.CONTEXT, np.int8))
    rates = np.arange(1, 101, dtype=np.float32) / np.float32(100)
    found = jax.vmap(lambda rate: pruner.budget_of_rate(batch, rate)[0])(rates)
    np.testing.assert_array_equal(found, np.maximum(1, np.arange(1, 101) * total // 100))


def test_an_empty_context_has_a_budget_of_zero():
    batch = batch_of((Prompt((1,)),), LENGTH, SEGMENTS)
    empty = batch._replace(role=np.where(batch.role == Role.CONTEXT, Role.PAD, batch.role).astype(np.int8))
    assert pruner.budget_of_rate(empty, 0.5).tolist() == [0]
    for granularity in GRANULARITIES:
        pruned = prune(random_scores(0, empty), empty, np.asarray([3], np.int32), granularity)
        assert pruned.kept.tolist() == [0]


def test_compacting_is_boolean_indexing():
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    keep = np.random.default_rng(0).random(batch.role.shape) < 0.5
    small = jax.jit(pruner.compact, static_argnums=2)(batch, keep, 16)
    keep &= batch.role != Role.PAD
    for name, empty in (("tokens", 0), ("role", 0), ("segment", -1), ("forced", False)):
        for row in range(2):
            expected = getattr(batch, name)[row][keep[row]]
            found = np.asarray(getattr(small, name)[row])
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert (found[len(expected) :] == empty).all()
            assert len(found) == 16
    np.testing.assert_array_equal(small.index, batch.index)


@pytest.mark.strict_dtype
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_dtypes_are_strict(granularity):
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    scores, keys = random_scores(2, batch), jax.random.split(jax.random.key(2), 2)
    budget = pruner.budget_of_rate(batch, 0.5)
    assert budget.dtype == jnp.int32
    pruned = jax.eval_shape(partial(pruner.prune, granularity=granularity, keys=keys), scores, batch, budget)
    assert (pruned.keep.dtype, pruned.kept.dtype, pruned.token_rank.dtype) == (jnp.bool_, jnp.int32, jnp.int32)
    for function in (pruner.log_prob, pruner.entropy):
        value = jax.eval_shape(partial(function, granularity=granularity), scores, batch, pruned)
        assert value.dtype == jnp.float32
