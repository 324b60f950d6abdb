"""Question-conditioned perplexity against plain readings of each text by itself."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from rcp.policies import Contrast
from rcp.types import Role
from tests.policies.prompts import KEY, MODEL, PROMPTS, SEGMENTS, log_probs, prompts, rows_of, spends_exactly

POLICY = Contrast.of(MODEL, length=16)


def log_prob_after(before: np.ndarray, text: np.ndarray) -> np.ndarray:
    """log p of each token of `text` after `before` and the tokens before it; nan where nothing is before it."""
    whole = np.concatenate([before, text])
    found = np.full(len(whole), np.nan)
    found[1:] = np.take_along_axis(log_probs(whole)[:-1], whole[1:, None], axis=1)[:, 0]
    return found[len(before) :]


@pytest.fixture(scope="module")
def scores():
    return jax.tree.map(np.asarray, POLICY.scores(prompts(), key=KEY))


def test_scores_equal_plain_readings(scores) -> None:
    batch = prompts()
    for row, prompt in enumerate(PROMPTS):
        question = batch.tokens[row, batch.role[row] == Role.QUESTION]
        for s in range(len(prompt.segments)):
            inside = batch.segment[row] == s
            segment = batch.tokens[row, inside]
            expected = log_prob_after(question, segment) - log_prob_after(question[:0], segment)
            np.testing.assert_allclose(scores.tokens[row, inside], np.nan_to_num(expected), atol=1e-4)
            likely = log_prob_after(segment, question).mean()
            np.testing.assert_allclose(scores.segments[row, s], likely, atol=1e-4)


def test_whole_segments_are_judged_the_same_by_one_reading(scores) -> None:
    whole = replace(POLICY, whole=True).scores(prompts(), key=KEY)
    np.testing.assert_array_equal(whole.segments, scores.segments)


def test_padding_and_order_of_the_batch_change_nothing(scores) -> None:
    turned = POLICY.scores(rows_of(prompts(40), [2, 0, 1]), key=KEY)
    context = prompts().role == Role.CONTEXT
    for row, of in enumerate([2, 0, 1]):
        there = np.flatnonzero(context[of])
        np.testing.assert_allclose(turned.tokens[row, there], scores.tokens[of, there], atol=1e-4)
        n = len(PROMPTS[of].segments)
        np.testing.assert_allclose(turned.segments[row, :n], scores.segments[of, :n], atol=1e-4)


def test_the_question_decides_and_the_answer_does_not(scores) -> None:
    batch = prompts()
    other = POLICY.scores(batch._replace(tokens=np.where(batch.role == Role.QUESTION, 5, batch.tokens)), key=KEY)
    assert not np.allclose(other.tokens, scores.tokens, atol=1e-2)
    other = POLICY.scores(batch._replace(tokens=np.where(batch.role == Role.ANSWER, 5, batch.tokens)), key=KEY)
    jax.tree.map(np.testing.assert_array_equal, other, scores)


@pytest.mark.parametrize("granularity", ["token", "segment", "two_stage"])
def test_the_budget_is_spent_exactly(granularity: str) -> None:
    spends_exactly(POLICY, prompts(), 0.4, granularity)


def test_shapes_are_static(scores) -> None:
    assert scores.tokens.dtype == scores.segments.dtype == np.float32
    assert scores.segments.shape == (len(PROMPTS), SEGMENTS) and np.isfinite(scores.segments).all()
