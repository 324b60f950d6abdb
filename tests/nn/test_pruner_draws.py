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
