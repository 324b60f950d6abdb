"""The probability of what the pruner draws, by enumeration: every draw of one small example is a row of a batch."""

from __future__ import annotations

import itertools
import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.nn import pruner
from rcp.nn.pruner import Pruned, Scores
from rcp.types import Role
from tests.nn.pruning import GRANULARITIES, LENGTH, SEGMENTS, prune, random_scores
from tests.sampling.enumeration import assert_frequencies, counts, gradient
from tests.tiny import Prompt, batch_of

FORCED = " with forced tokens"
CASES = (*GRANULARITIES, *(name + FORCED for name in GRANULARITIES))
DRAWS = 12_000  # rows of every batch here, so that each program is compiled once; enumerations are repeated to fill it


@partial(jax.jit, static_argnames="granularity")
def entropy(scores, batch, pruned, granularity):
    return pruner.entropy(scores, batch, pruned, granularity=granularity)


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

    granularity: str
    batch: Batch
    budget: np.ndarray
    pruned: Pruned  # of each complete ordering
    draws: list[tuple[tuple[int, ...], tuple[int, ...]]]  # the orderings, of segments and of tokens
    context: slice


@cache
def every_draw(case: str) -> Every:
    """ "segment": sizes 2, 3, 1 and a budget of 3, so that the boundary cuts segments. "token": 2 of 4. "two_stage": a
    budget of 1 lets segments of 2 tokens through.

    With forced tokens no segment is forced as a whole: which ones there is room for beside what is forced is drawn.
    """
    prompt, budget = {
        "segment": (Prompt((2, 3, 1)), 3),
        "token": (Prompt((2, 2)), 2),
        "two_stage": (Prompt((2, 1, 1)), 1),
        "segment" + FORCED: (Prompt((2, 3, 2), forced=((0, 1), (1, 0), (2, 1))), 5),
        "token" + FORCED: (Prompt((2, 2), forced=((1, 0),)), 2),
        "two_stage" + FORCED: (Prompt((2, 1, 2), forced=((0, 1), (2, 1))), 3),
    }[case]
    granularity, sizes = case.removesuffix(FORCED), prompt.segments
    one = batch_of((prompt,), 12, 3)
    start = int(np.argmax(one.role[0] == Role.CONTEXT))
    free = tuple(t for t in range(sum(sizes)) if not one.forced[0, start + t])
    segments, tokens = [tuple(range(len(sizes)))], [free]
    if granularity != "token":
        segments = list(itertools.permutations(segments[0]))
    if granularity != "segment":
        tokens = list(itertools.permutations(free))
    draws = list(itertools.product(segments, tokens))
    batch = jax.tree.map(lambda x: np.repeat(x, DRAWS, axis=0), one)
    token_scores, segment_scores = np.zeros((DRAWS, 12), np.float32), np.zeros((DRAWS, 3), np.float32)
    for row in range(DRAWS):
        by_segment, by_token = draws[row % len(draws)]
        segment_scores[row, list(by_segment)] = -np.arange(len(sizes))
        token_scores[row, start + np.asarray(by_token)] = -np.arange(len(free))
    k = np.full(DRAWS, budget, np.int32)
    pruned = prune(Scores(token_scores, segment_scores), batch, k, granularity)
    context = slice(start, start + sum(sizes))
    return Every(granularity, batch, k, jax.tree.map(np.asarray, pruned), draws, context)


def exact_probabilities(case: str, phi: np.ndarray) -> np.ndarray:
    """Probability of each complete ordering by drawing one after another, in float64."""
    every = every_draw(case)
    count = every.context.stop - every.context.start
    tokens, segments = np.exp(phi[:count]), np.exp(phi[count:])

    def ordered(weights: np.ndarray, order) -> float:
        result = 1.0
        for i in range(len(order)):
            result *= weights[order[i]] / weights[list(order[i:])].sum()
        return result

    result = np.ones(len(every.draws))
    for row, (by_segment, by_token) in enumerate(every.draws):
        if every.granularity != "token":
            result[row] *= ordered(segments, by_segment)
        if every.granularity != "segment":
            # The token draw goes over the tokens let through only. An ordering of all tokens stands for that of the
            # pool, which others stand for too: each has the same share of its probability.
            pool = [t for t in by_token if every.pruned.token_pool[row, every.context][t]]
            same = math.factorial(len(by_token)) / math.factorial(len(pool))
            result[row] *= ordered(tokens, pool) / same
    return result


def rewards(pruned: Pruned) -> np.ndarray:
    """Any function of the mask."""
    keep = np.asarray(pruned.keep, np.float64)
    values = np.random.default_rng(5).normal(size=keep.shape[1])
    return keep @ values + np.prod(keep[:, 1:3], axis=1) + (keep @ values) ** 2 / 3


def phi_of(case: str) -> np.ndarray:
    context = every_draw(case).context
    segments = 2 if case.startswith("token") else 3
    return np.random.default_rng(7).normal(size=context.stop - context.start + segments)


def scores_of(phi: np.ndarray, context: slice) -> Scores:
    count = context.stop - context.start
    tokens, segments = np.zeros((DRAWS, 12), np.float32), np.zeros((DRAWS, 3), np.float32)
    tokens[:, context], segments[:, : len(phi) - count] = phi[:count], phi[count:]
    return Scores(tokens, segments)


def in_phi(slope: Scores, case: str) -> np.ndarray:
    """The gradient [rows, phi] of each row."""
    segments = np.asarray(slope.segments)[:, : 2 if case.startswith("token") else 3]
    return np.concatenate([np.asarray(slope.tokens)[:, every_draw(case).context], segments], axis=1)


@pytest.mark.parametrize("case", CASES)
def test_the_score_function_gives_the_gradient_of_the_expected_reward(case):
    """sum p(draw) reward(mask) grad log p(draw) over every draw, against differences of the exact expectation."""
    every = every_draw(case)
    count, phi = len(every.draws), phi_of(case)
    reward, probabilities = rewards(every.pruned)[:count], exact_probabilities(case, phi)
    assert probabilities.sum() == pytest.approx(1)
    _, slope = score_function(scores_of(phi, every.context), every.batch, every.pruned, every.granularity)
    exact = gradient(lambda phi: np.sum(exact_probabilities(case, phi) * reward), phi)
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose((probabilities * reward) @ in_phi(slope, case)[:count], exact, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_draws_come_as_often_as_their_probability_says(case):
    """So the sampler and `log_prob` are of one distribution, and the estimate over samples is that of the theory."""
    every = every_draw(case)
    phi = phi_of(case)
    scores = scores_of(phi, every.context)
    keys = jax.random.split(jax.random.key(1), DRAWS)
    found = prune(scores, every.batch, every.budget, every.granularity, keys)
    masks, inverse = np.unique(every.pruned.keep[: len(every.draws)], axis=0, return_inverse=True)
    expected = np.bincount(inverse.reshape(-1), weights=exact_probabilities(case, phi))
    assert_frequencies(counts(np.asarray(found.keep), masks), expected)

    reward = rewards(every.pruned)[: len(every.draws)]
    exact = gradient(lambda phi: np.sum(exact_probabilities(case, phi) * reward), phi)
    _, slope = score_function(scores, every.batch, found, every.granularity)
    each = rewards(found)[:, None] * in_phi(slope, case)
    error = each.std(axis=0) / DRAWS**0.5
    assert (np.abs(each.mean(axis=0) - exact) < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("case", CASES)
def test_entropy_estimates_average_to_the_entropy(case):
    """Of the draws looked at: the entropy of a stopped sequence, by enumeration."""
    every = every_draw(case)
    count, phi = len(every.draws), phi_of(case)
    probabilities, scores = exact_probabilities(case, phi), scores_of(phi, every.context)
    log_probs, _ = score_function(scores, every.batch, every.pruned, every.granularity)
    estimates = entropy(scores, every.batch, every.pruned, every.granularity)
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


@pytest.mark.parametrize("granularity", ["segment", "two_stage"])
def test_a_forced_token_in_every_segment_leaves_the_choice_to_the_scorer(granularity):
    prompt = Prompt((3, 3, 3), forced=((0, 2), (1, 0), (2, 1)))
    batch = batch_of((prompt, prompt), LENGTH, SEGMENTS)
    scores = random_scores(0, batch)
    pruned = prune(scores, batch, np.asarray([5, 5], np.int32), granularity, jax.random.split(jax.random.key(0), 2))
    values, slope = score_function(scores, batch, pruned, granularity)
    assert (np.asarray(values) < -0.1).all()
    assert (np.abs(np.asarray(slope.segments)[:, :3]).max(axis=1) > 0.1).all()
