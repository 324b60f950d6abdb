"""Maximal marginal relevance against the textbook's loop."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from rcp.policies import Embedding, Mmr
from rcp.policies.diversity import marginal_ranks
from tests.policies.prompts import KEY, MODEL, PROMPTS, SEGMENTS, prompts, rows_of, spends_exactly
from tests.policies.test_embedding import naive_embeddings

POLICY = Mmr.of(MODEL, layer=1)
RANKS = jax.jit(marginal_ranks)


def naive_order(relevance: np.ndarray, similarity: np.ndarray, trade: float) -> list[int]:
    chosen: list[int] = []
    left = list(range(len(relevance)))
    while left:
        values = [
            trade * relevance[d] - (1 - trade) * max((similarity[d, e] for e in chosen), default=0.0) for d in left
        ]
        chosen.append(left.pop(int(np.argmax(values))))
    return chosen


@pytest.mark.parametrize("trade", [0.0, 0.3, 0.5, 1.0])
def test_ranks_equal_the_loop(trade: float) -> None:
    rng = np.random.default_rng(0)
    relevance = rng.normal(size=(4, SEGMENTS)).astype(np.float32)
    similarity = rng.normal(size=(4, SEGMENTS, SEGMENTS)).astype(np.float32)
    similarity += np.swapaxes(similarity, 1, 2)
    counts = np.array([6, 4, 1, 5])
    there = np.arange(SEGMENTS)[None] < counts[:, None]
    found = np.asarray(RANKS(relevance, similarity, there, trade))
    for row, n in enumerate(counts):
        assert np.argsort(found[row, :n]).tolist() == naive_order(relevance[row, :n], similarity[row, :n, :n], trade)
        assert sorted(found[row].tolist()) == list(range(SEGMENTS)) and (found[row, n:] >= n).all()


def test_scores_rank_the_readers_embeddings() -> None:
    batch = prompts()
    found = np.asarray(POLICY.scores(batch, key=KEY).segments)
    for row in range(len(PROMPTS)):
        segments, question = naive_embeddings(batch, row)
        order = naive_order(segments @ question, segments @ segments.T, 0.5)
        assert np.argsort(-found[row, : len(segments)]).tolist() == order
    longer = POLICY.scores(rows_of(prompts(40), [2, 0, 1]), key=KEY)
    np.testing.assert_array_equal(longer.segments, found[[2, 0, 1]])


def test_without_diversity_it_is_retrieval() -> None:
    batch = prompts()
    cosines = Embedding.of(MODEL, layer=1).scores(batch, key=KEY).segments
    ranks = replace(POLICY, trade=1.0).scores(batch, key=KEY).segments
    for row, prompt in enumerate(PROMPTS):
        n = len(prompt.segments)
        np.testing.assert_array_equal(np.argsort(-cosines[row, :n]), np.argsort(-ranks[row, :n]))


def test_a_copy_of_a_chosen_segment_comes_after_another() -> None:
    relevance = np.array([[0.9, 0.9, 0.3]], np.float32)
    similarity = np.array([[[1, 1, 0], [1, 1, 0], [0, 0, 1]]], np.float32)
    assert RANKS(relevance, similarity, np.ones((1, 3), bool), 0.5).tolist() == [[0, 2, 1]]


def test_the_budget_is_spent_exactly() -> None:
    spends_exactly(POLICY, prompts(), 0.4)
