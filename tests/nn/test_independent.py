"""CoT-Influx's sampling: each shot, then each token of the surviving shots, by enumeration of every outcome."""

from __future__ import annotations

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.nn import pruner
from rcp.nn.pruner import Pruned, Scores
from rcp.types import Batch, Role
from tests.nn.pruning import prune
from tests.sampling.enumeration import assert_frequencies, counts, gradient
from tests.tiny import Prompt, batch_of

DRAWS = 8_000
SIZES = (5, 4, 3)  # tokens that can be dropped, behind the first three of each segment: 2, 1, 0
FREE = ((0, 3), (0, 4), (1, 3))
LENGTH = sum(SIZES) + 4
PHI = np.array([-0.8, 0.3, -1.0, 0.9, -0.2, 0.5])  # of three segments, then of the three free tokens


def prompts(rows: int) -> Batch:
    one = batch_of((Prompt(SIZES),), LENGTH, 3)
    return jax.tree.map(lambda x: np.repeat(x, rows, axis=0), one)


@cache
def outcomes() -> tuple[np.ndarray, np.ndarray]:
    """Every (segments kept, free tokens kept): bool [15, 3] twice."""
    found = []
    for kept in itertools.product([False, True], repeat=3):
        choices = [(False, True) if kept[segment] else (False,) for segment, _ in FREE]
        found += [(kept, tokens) for tokens in itertools.product(*choices) if any(kept)]
    return tuple(np.array(part) for part in zip(*found, strict=True))  # pyright: ignore[reportReturnType]


def masks() -> np.ndarray:
    """bool [outcomes, LENGTH]: the keep-mask of every outcome, fixed tokens included."""
    batch, (segments, tokens) = prompts(1), outcomes()
    result = np.tile((batch.role != Role.CONTEXT) & (batch.role != Role.PAD), (len(segments), 1))
    start = np.flatnonzero(batch.role[0] == Role.CONTEXT)[0] + np.r_[0, np.cumsum(SIZES)]
    for row in range(len(segments)):
        for segment in np.flatnonzero(segments[row]):
            result[row, start[segment] : start[segment] + 3] = True
        for (segment, place), kept in zip(FREE, tokens[row], strict=True):
            result[row, start[segment] + place] = kept
    return result


def probabilities(phi: np.ndarray) -> np.ndarray:
    """Of every outcome, in float64: segments given that one survives, times the tokens of the survivors."""
    segments, tokens = outcomes()
    p = 1 / (1 + np.exp(-phi))
    by_segment = np.where(segments, p[:3], 1 - p[:3]).prod(-1) / (1 - np.prod(1 - p[:3]))
    alive = segments[:, [segment for segment, _ in FREE]]
    return by_segment * np.where(alive, np.where(tokens, p[3:], 1 - p[3:]), 1.0).prod(-1)


def scores_of(phi: np.ndarray, batch: Batch) -> Scores:
    tokens = np.full(batch.role.shape, -50.0, np.float32)  # so that a lead token without its guarantee would be dropped
    segments = np.broadcast_to(phi[:3].astype(np.float32), batch.support.shape)
    start = np.flatnonzero(batch.role[0] == Role.CONTEXT)[0] + np.r_[0, np.cumsum(SIZES)]
    for (segment, place), value in zip(FREE, phi[3:], strict=True):
        tokens[:, start[segment] + place] = value
    return Scores(jnp.asarray(tokens), jnp.asarray(segments))


def in_phi(slope: Scores) -> np.ndarray:
    start = np.flatnonzero(prompts(1).role[0] == Role.CONTEXT)[0] + np.r_[0, np.cumsum(SIZES)]
    free = np.asarray(slope.tokens)[:, [start[segment] + place for segment, place in FREE]]
    others = np.asarray(slope.tokens).copy()
    others[:, [start[segment] + place for segment, place in FREE]] = 0
    assert not others.any(), "tokens that nothing is decided about have no gradient"
    return np.concatenate([np.asarray(slope.segments), free], axis=1)


@partial(jax.jit, static_argnames="measure")
def each(measure, scores: Scores, batch: Batch, pruned: Pruned) -> tuple[jax.Array, Scores]:
    """A measure of each row's draw, and its gradient in that row's scores."""

    def total(scores):
        values = measure(scores, batch, pruned, granularity="independent")
        return jnp.sum(values), values

    slope, values = jax.grad(total, has_aux=True)(scores)
    return values, slope


@cache
def drawn() -> Pruned:
    batch = prompts(DRAWS)
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return prune(scores_of(PHI, batch), batch, np.zeros(DRAWS, np.int32), "independent", keys)


def pruned_as(rows: np.ndarray) -> Pruned:
    """As if outcome `rows[i]` had been drawn in row i."""
    segments = outcomes()[0][rows]
    rank = np.where(segments, np.cumsum(segments, 1) - 1, segments.sum(1, keepdims=True) + np.cumsum(~segments, 1) - 1)
    return drawn()._replace(
        keep=masks()[rows], segment_rank=rank.astype(np.int32), drawn=segments.sum(1).astype(np.int32)
    )


def test_outcomes_occur_as_often_as_their_probability_says():
    found = drawn()
    assert_frequencies(counts(np.asarray(found.keep), masks()), probabilities(PHI))
    context = prompts(1).role[0] == Role.CONTEXT
    np.testing.assert_array_equal(found.kept, np.asarray(found.keep)[:, context].sum(1))
    assert (np.asarray(found.drawn) > 0).all(), "a prompt never loses all its shots"
    values, slope = each(pruner.log_prob, scores_of(PHI, prompts(DRAWS)), prompts(DRAWS), found)
    index = {mask.tobytes(): number for number, mask in enumerate(masks())}
    numbers = [index[mask.tobytes()] for mask in np.asarray(found.keep)]
    np.testing.assert_allclose(values, np.log(probabilities(PHI))[numbers], atol=2e-5)
    mean = in_phi(slope).mean(0)
    assert (np.abs(mean) < 4.5 * in_phi(slope).std(0) / DRAWS**0.5).all(), "the mean of the score function is 0"


def test_log_prob_entropy_and_score_function_equal_enumeration():
    rows = np.arange(DRAWS) % len(masks())
    batch, count = prompts(DRAWS), len(masks())
    values, slope = each(pruner.log_prob, scores_of(PHI, batch), batch, pruned_as(rows))
    exact = probabilities(PHI)
    assert exact.sum() == pytest.approx(1)
    np.testing.assert_allclose(values[:count], np.log(exact), atol=2e-5)
    reward = np.random.default_rng(0).normal(size=count)
    truth = gradient(lambda phi: probabilities(phi) @ reward, PHI)
    np.testing.assert_allclose((exact * reward) @ in_phi(slope)[:count], truth, atol=2e-5)
    entropies, _ = each(pruner.entropy, scores_of(PHI, batch), batch, pruned_as(rows))
    assert exact @ np.asarray(entropies)[:count] == pytest.approx(-exact @ np.log(exact), abs=2e-5)


def test_without_a_key_what_is_likelier_than_not_is_kept():
    batch = batch_of((Prompt(SIZES), Prompt(SIZES)), LENGTH, 3)
    scores = scores_of(np.array([0.5, -0.4, 2.0, 0.1, -0.1, 3.0]), batch)
    scores = scores._replace(segments=scores.segments.at[1].set(jnp.asarray([-3.0, -1.0, -2.0])))
    found = prune(scores, batch, np.asarray([7, 1], np.int32), "independent")
    segments = np.asarray(found.segment_rank) < np.asarray(found.drawn)[:, None]
    np.testing.assert_array_equal(segments, [[True, False, True], [False, True, False]])
    np.testing.assert_array_equal(found.kept, [3 + 1 + 3, 3 + 1])
    np.testing.assert_array_equal(found.asked, [7, 1])


def test_forced_tokens_are_kept_and_a_forced_segment_does_not_count_as_the_survivor():
    prompt = Prompt((4, 4, 5), forced=tuple((2, place) for place in range(5)))
    batch = jax.tree.map(lambda x: np.repeat(x, 64, axis=0), batch_of((prompt,), LENGTH + 1, 3))
    low = Scores(jnp.full(batch.role.shape, -9.0), jnp.full(batch.support.shape, -9.0))
    found = prune(low, batch, np.zeros(64, np.int32), "independent", jax.random.split(jax.random.key(1), 64))
    assert np.asarray(found.keep)[batch.forced].all()
    survivors = np.asarray(found.segment_rank) < np.asarray(found.drawn)[:, None]
    assert survivors[:, 2].all() and survivors[:, :2].any(1).all()
    np.testing.assert_array_equal(np.asarray(found.kept) >= 5 + 3, True)


def test_forced_tokens_of_a_segment_that_is_dropped_are_kept():
    """The segment is drawn like any other, and its probability counts."""
    prompt = Prompt((4, 4, 5), forced=((2, 1), (2, 4)))
    batch = jax.tree.map(lambda x: np.repeat(x, 64, axis=0), batch_of((prompt,), LENGTH + 1, 3))
    low = Scores(jnp.full(batch.role.shape, -9.0), jnp.full(batch.support.shape, -9.0).at[:, 0].set(9.0))
    found = prune(low, batch, np.zeros(64, np.int32), "independent", jax.random.split(jax.random.key(1), 64))
    assert np.asarray(found.keep)[batch.forced].all()
    survivors = np.asarray(found.segment_rank) < np.asarray(found.drawn)[:, None]
    np.testing.assert_array_equal(survivors, np.tile([True, False, False], (64, 1)))
    kept = np.asarray(found.keep) & (batch.role == Role.CONTEXT)
    np.testing.assert_array_equal((kept & (batch.segment == 2)).sum(1), 2)
    values, slope = each(pruner.log_prob, low, batch, found)
    assert np.isfinite(values).all() and np.any(np.asarray(slope.segments)[:, 2])


def test_the_same_scores_meet_a_budget_at_two_stages():
    assert [pruner.exact(name) for name in ("token", "segment", "two_stage", "independent")] == [
        "token",
        "segment",
        "two_stage",
        "two_stage",
    ]
