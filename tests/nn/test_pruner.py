"""The budget, the guarantees and the probability of the draw, at every granularity."""

from __future__ import annotations

import itertools
import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.nn import pruner
from rcp.nn.pruner import Pruned, Scores
from rcp.types import Batch, Role
from tests.sampling.enumeration import assert_frequencies, counts, gradient
from tests.tiny import Prompt, batch_of

GRANULARITIES = ("token", "segment", "two_stage")
LENGTH, SEGMENTS = 24, 5
TRACES: list[tuple[str, bool]] = []


@partial(jax.jit, static_argnames="granularity")
def prune(scores, batch, budget, granularity, keys=None) -> Pruned:
    TRACES.append((granularity, keys is None))
    return pruner.prune(scores, batch, budget, granularity=granularity, keys=keys)


@partial(jax.jit, static_argnames="granularity")
def entropy(scores, batch, pruned, granularity):
    return pruner.entropy(scores, batch, pruned, granularity=granularity)


def random_scores(seed: int, batch: Batch, scale: float = 1.0) -> Scores:
    rng = np.random.default_rng(seed)
    rows, length = batch.role.shape
    draw = [scale * rng.normal(size=shape).astype(np.float32) for shape in ((rows, length), batch.support.shape)]
    return Scores(*draw)


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


def naive_segments(sizes, order, budget) -> list[tuple[int, int]]:
    """(segment, place) of the tokens kept: whole segments in order, the first tokens of the one that crosses."""
    kept = []
    for segment in order:
        kept += [(segment, place) for place in range(sizes[segment])][: budget - len(kept)]
    return kept


def mask_of(batch: Batch, row: int, kept) -> np.ndarray:
    """The keep-mask of a row with these (segment, place) and everything outside the context."""
    mask = (batch.role[row] != Role.PAD) & (batch.role[row] != Role.CONTEXT)
    for segment, place in kept:
        mask[np.flatnonzero(batch.segment[row] == segment)[place]] = True
    return mask


ROWS = (Prompt((2, 3, 1)), Prompt((1, 4, 2, 3), instruction=0))


@pytest.mark.parametrize("budget", range(0, 12))
def test_segments_go_whole_and_in_the_order_of_their_scores(budget):
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    scores = random_scores(budget, batch)
    pruned = prune(scores, batch, np.full(2, budget, np.int32), "segment")
    for row, prompt in enumerate(ROWS):
        order = np.argsort(-scores.segments[row, : len(prompt.segments)])
        expected = mask_of(batch, row, naive_segments(prompt.segments, order, budget))
        np.testing.assert_array_equal(pruned.keep[row], expected)


def test_a_forced_token_behind_the_cut_displaces_the_last_one_before_it():
    prompt = Prompt((2, 3, 2), forced=((2, 1),))
    batch = batch_of((prompt,), LENGTH, SEGMENTS)
    segments = np.asarray([[3, 9, -9, 0, 0]], np.float32)
    keep = prune(Scores(np.zeros((1, LENGTH), np.float32), segments), batch, np.asarray([4], np.int32), "segment").keep
    # The segment with the forced token is drawn first, whole; then the best one, cut.
    np.testing.assert_array_equal(keep[0], mask_of(batch, 0, [(2, 0), (2, 1), (1, 0), (1, 1)]))
    keep = prune(Scores(np.zeros((1, LENGTH), np.float32), segments), batch, np.asarray([1], np.int32), "segment").keep
    np.testing.assert_array_equal(keep[0], mask_of(batch, 0, [(2, 1)]))


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


# ---- The probability of a draw, by enumeration: every ordered draw of one small example is a row of a batch.

DRAWS = 12_000  # rows of every batch here, so that each program is compiled once; enumerations are repeated to fill it


@partial(jax.jit, static_argnames="granularity")
def score_function(scores, batch, pruned, granularity) -> tuple[jax.Array, Scores]:
    """Log-probability of each row's draw, and its gradient in that row's scores."""

    def total(scores):
        values = pruner.log_prob(scores, batch, pruned, granularity=granularity)
        return jnp.sum(values), values

    slope, values = jax.grad(total, has_aux=True)(scores)
    return values, slope


class Every(NamedTuple):
    """All that the sampler could draw. phi, in tests: logits of the context tokens, then of the segments."""

    batch: Batch
    budget: np.ndarray
    pruned: Pruned  # of each complete ordering
    draws: list[tuple[tuple[int, ...], tuple[int, ...]]]  # the orderings, of segments and of tokens
    context: slice


@cache
def every_draw(granularity: str) -> Every:
    """ "segment": sizes 2, 3, 1 and a budget of 3, so that the boundary cuts segments. "token": 2 of 4. "two_stage": a
    budget of 1 lets segments of 2 tokens through.
    """
    prompt, budget = {
        "segment": (Prompt((2, 3, 1)), 3),
        "token": (Prompt((2, 2)), 2),
        "two_stage": (Prompt((2, 1, 1)), 1),
    }[granularity]
    sizes = prompt.segments
    segments, tokens = [tuple(range(len(sizes)))], [tuple(range(sum(sizes)))]
    if granularity != "token":
        segments = list(itertools.permutations(segments[0]))
    if granularity != "segment":
        tokens = list(itertools.permutations(tokens[0]))
    draws = list(itertools.product(segments, tokens))
    one = batch_of((prompt,), 12, 3)
    batch = jax.tree.map(lambda x: np.repeat(x, DRAWS, axis=0), one)
    start = int(np.argmax(one.role[0] == Role.CONTEXT))
    token_scores, segment_scores = np.zeros((DRAWS, 12), np.float32), np.zeros((DRAWS, 3), np.float32)
    for row in range(DRAWS):
        by_segment, by_token = draws[row % len(draws)]
        segment_scores[row, list(by_segment)] = -np.arange(len(sizes))
        token_scores[row, start + np.asarray(by_token)] = -np.arange(sum(sizes))
    k = np.full(DRAWS, budget, np.int32)
    pruned = prune(Scores(token_scores, segment_scores), batch, k, granularity)
    return Every(batch, k, jax.tree.map(np.asarray, pruned), draws, slice(start, start + sum(sizes)))


def exact_probabilities(granularity: str, phi: np.ndarray) -> np.ndarray:
    """Probability of each complete ordering by drawing one after another, in float64."""
    every = every_draw(granularity)
    count = every.context.stop - every.context.start
    tokens, segments = np.exp(phi[:count]), np.exp(phi[count:])

    def ordered(weights: np.ndarray, order) -> float:
        result = 1.0
        for i in range(len(order)):
            result *= weights[order[i]] / weights[list(order[i:])].sum()
        return result

    result = np.ones(len(every.draws))
    for row, (by_segment, by_token) in enumerate(every.draws):
        if granularity != "token":
            result[row] *= ordered(segments, by_segment)
        if granularity != "segment":
            # The token draw goes over the tokens let through only. An ordering of all tokens stands for that of the
            # pool, which others stand for too: each has the same share of its probability.
            pool = np.flatnonzero(every.pruned.token_pool[row, every.context])
            same = math.factorial(count) / math.factorial(len(pool))
            result[row] *= ordered(tokens, [t for t in by_token if t in pool]) / same
    return result


def rewards(pruned: Pruned) -> np.ndarray:
    """Any function of the mask."""
    keep = np.asarray(pruned.keep, np.float64)
    values = np.random.default_rng(5).normal(size=keep.shape[1])
    return keep @ values + np.prod(keep[:, 1:3], axis=1) + (keep @ values) ** 2 / 3


def phi_of(granularity: str) -> np.ndarray:
    context = every_draw(granularity).context
    segments = {"segment": 3, "token": 2, "two_stage": 3}[granularity]
    return np.random.default_rng(7).normal(size=context.stop - context.start + segments)


def scores_of(phi: np.ndarray, context: slice) -> Scores:
    count = context.stop - context.start
    tokens, segments = np.zeros((DRAWS, 12), np.float32), np.zeros((DRAWS, 3), np.float32)
    tokens[:, context], segments[:, : len(phi) - count] = phi[:count], phi[count:]
    return Scores(tokens, segments)


def in_phi(slope: Scores, granularity: str) -> np.ndarray:
    """The gradient [rows, phi] of each row."""
    segments = np.asarray(slope.segments)[:, : 2 if granularity == "token" else 3]
    return np.concatenate([np.asarray(slope.tokens)[:, every_draw(granularity).context], segments], axis=1)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_score_function_gives_the_gradient_of_the_expected_reward(granularity):
    """sum p(draw) reward(mask) grad log p(draw) over every draw, against differences of the exact expectation."""
    every = every_draw(granularity)
    count, phi = len(every.draws), phi_of(granularity)
    reward, probabilities = rewards(every.pruned)[:count], exact_probabilities(granularity, phi)
    assert probabilities.sum() == pytest.approx(1)
    _, slope = score_function(scores_of(phi, every.context), every.batch, every.pruned, granularity)
    exact = gradient(lambda phi: np.sum(exact_probabilities(granularity, phi) * reward), phi)
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose((probabilities * reward) @ in_phi(slope, granularity)[:count], exact, atol=2e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_draws_come_as_often_as_their_probability_says(granularity):
    """So the sampler and `log_prob` are of one distribution, and the estimate over samples is that of the theory."""
    every = every_draw(granularity)
    phi = phi_of(granularity)
    scores = scores_of(phi, every.context)
    keys = jax.random.split(jax.random.key(1), DRAWS)
    found = prune(scores, every.batch, every.budget, granularity, keys)
    masks, inverse = np.unique(every.pruned.keep[: len(every.draws)], axis=0, return_inverse=True)
    expected = np.bincount(inverse.reshape(-1), weights=exact_probabilities(granularity, phi))
    assert_frequencies(counts(np.asarray(found.keep), masks), expected)

    reward = rewards(every.pruned)[: len(every.draws)]
    exact = gradient(lambda phi: np.sum(exact_probabilities(granularity, phi) * reward), phi)
    _, slope = score_function(scores, every.batch, found, granularity)
    each = rewards(found)[:, None] * in_phi(slope, granularity)
    error = each.std(axis=0) / DRAWS**0.5
    assert (np.abs(each.mean(axis=0) - exact) < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_entropy_estimates_average_to_the_entropy(granularity):
    """Of the draws looked at: the entropy of a stopped sequence, by enumeration."""
    every = every_draw(granularity)
    count, phi = len(every.draws), phi_of(granularity)
    probabilities, scores = exact_probabilities(granularity, phi), scores_of(phi, every.context)
    log_probs, _ = score_function(scores, every.batch, every.pruned, granularity)
    estimates = entropy(scores, every.batch, every.pruned, granularity)
    exact = -np.sum(probabilities * np.asarray(log_probs)[:count])
    np.testing.assert_allclose(np.sum(probabilities * np.asarray(estimates)[:count]), exact, rtol=1e-5)


def test_what_is_certain_has_probability_one_and_no_gradient():
    prompt = Prompt((2, 1), forced=((0, 0), (0, 1), (1, 0)))
    batch = batch_of((prompt, Prompt((2, 2))), LENGTH, SEGMENTS)
    scores = random_scores(0, batch)
    pruned = prune(scores, batch, np.asarray([2, 0], np.int32), "two_stage", jax.random.split(jax.random.key(0), 2))
    values, slope = score_function(scores, batch, pruned, "two_stage")
    assert not np.any(values)
    assert not any(np.any(x) for x in slope)


# ---- Relaxed masks


@partial(jax.jit, static_argnames=("granularity", "method"))
def relax(scores, batch, budget, temperature, granularity, method, keys=None):
    return pruner.relax(
        scores, batch, budget, granularity=granularity, temperature=temperature, method=method, keys=keys
    )


FORCED = (Prompt((2, 3, 1), forced=((1, 2),)), Prompt((1, 4, 2, 3), instruction=0))


@pytest.mark.parametrize(
    ("granularity", "method"),
    [("token", "threshold"), ("token", "successive"), ("segment", "threshold"), ("two_stage", "threshold")],
)
def test_relaxed_masks_sum_to_the_budget(granularity, method):
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    scores, keys = random_scores(1, batch), jax.random.split(jax.random.key(1), 2)
    budget = np.asarray([3, 5], np.int32)
    soft = np.asarray(relax(scores, batch, budget, 0.7, granularity, method, keys))
    context = batch.role == Role.CONTEXT
    assert (soft[(batch.role != Role.PAD) & ~context] == 1).all()
    assert (soft[batch.role == Role.PAD] == 0).all()
    assert (soft[batch.forced] == 1).all()
    assert (soft >= 0).all()
    if granularity != "segment":
        np.testing.assert_allclose((soft * context).sum(1), budget, rtol=1e-5)
        return
    drawn = prune(scores, batch, budget, granularity, keys).drawn
    for row, prompt in enumerate(FORCED):  # one value a segment, and their sum is how many the hard draw looks at
        values = [soft[row][(batch.segment[row] == s) & ~batch.forced[row]] for s in range(len(prompt.segments))]
        assert all(np.ptp(value) == 0 for value in values)
        np.testing.assert_allclose(sum(value[0] for value in values), drawn[row], rtol=1e-5)


@pytest.mark.parametrize("granularity", ["token", "segment"])
def test_straight_through_has_the_value_of_the_draw_and_the_gradient_of_the_relaxation(granularity):
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    scores, keys = jax.tree.map(jnp.asarray, random_scores(2, batch)), jax.random.split(jax.random.key(2), 2)
    budget = np.asarray([3, 5], np.int32)
    value = jnp.asarray(np.random.default_rng(0).normal(size=batch.role.shape), jnp.float32)
    hard = relax(scores, batch, budget, 0.7, granularity, "straight_through", keys)
    drawn = prune(scores, batch, budget, "segment" if granularity == "segment" else "token", keys)
    np.testing.assert_array_equal(hard, np.asarray(drawn.keep, np.float32))

    @partial(jax.jit, static_argnames="method")
    def slope(scores, method):
        return jax.grad(lambda s: jnp.sum(value * relax(s, batch, budget, 0.7, granularity, method, keys)))(scores)

    found, expected = slope(scores, "straight_through"), slope(scores, "threshold")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    assert any(np.any(x) for x in found)
    assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize("granularity", ["token", "segment"])
def test_sigmoid_gates_each_unit_by_itself(granularity):
    batch = batch_of(FORCED, LENGTH, SEGMENTS)
    scores = jax.tree.map(jnp.asarray, random_scores(3, batch))
    soft = np.asarray(relax(scores, batch, np.asarray([3, 5], np.int32), 0.5, granularity, "sigmoid"))
    by_segment = np.take_along_axis(np.asarray(scores.segments), np.maximum(batch.segment, 0), axis=1)
    logits = by_segment if granularity == "segment" else np.asarray(scores.tokens)
    free = (batch.role == Role.CONTEXT) & ~batch.forced
    if granularity == "segment":  # a segment with a forced token is kept whole
        free &= ~((np.arange(2) == 0)[:, None] & (batch.segment == 1))
    np.testing.assert_allclose(soft[free], (1 / (1 + np.exp(-logits / 0.5)))[free], rtol=1e-5)
    assert (soft[~free & (batch.role != Role.PAD)] == 1).all()
    budget = np.asarray([3, 5], np.int32)
    slope = jax.jit(jax.grad(lambda s: jnp.sum(relax(s, batch, budget, 0.5, granularity, "sigmoid"))))(scores)
    assert all(np.isfinite(x).all() for x in slope)


# ---- Budgets and compacting


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
    for method in ("threshold", "successive", "straight_through", "sigmoid"):
        soft = jax.eval_shape(
            partial(pruner.relax, granularity=granularity, temperature=0.5, method=method, keys=keys),
            scores,
            batch,
            budget,
        )
        assert soft.dtype == jnp.float32
