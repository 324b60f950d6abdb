"""Embeddings of pieces read apart, against a loop that reads each piece by itself."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from rcp.nn.layout import segment_exists
from rcp.policies import Embedding
from rcp.types import Batch, Role
from tests.policies.prompts import KEY, MODEL, PROMPTS, prompts, rows_of, spends_exactly

LENGTH = 8
POLICY = Embedding.of(MODEL, layer=1)
HIDDEN = jax.jit(lambda tokens: MODEL.hidden(tokens, stop=1))


def naive_embeddings(batch: Batch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of the row's segments and question."""
    pieces = [batch.tokens[row, batch.segment[row] == s] for s in range(batch.segment[row].max() + 1)]
    pieces.append(batch.tokens[row, batch.role[row] == Role.QUESTION])
    filled = [np.pad(piece, (0, LENGTH - len(piece)))[None] for piece in pieces]  # behind it; the reader is causal
    states = [np.asarray(HIDDEN(x))[0, : len(piece)] for x, piece in zip(filled, pieces)]
    means = np.stack([(s / np.sqrt((s**2).mean(axis=1, keepdims=True) + 1e-6)).mean(axis=0) for s in states])
    centred = means - means.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit[:-1], unit[-1]


def test_scores_are_cosines_of_pieces_read_apart() -> None:
    batch = prompts()
    found = np.asarray(POLICY.scores(batch, key=KEY).segments)
    for row in range(len(PROMPTS)):
        segments, question = naive_embeddings(batch, row)
        np.testing.assert_allclose(found[row, : len(segments)], segments @ question, atol=1e-5)
    assert (found[~np.asarray(segment_exists(batch))] == 0).all()


def test_padding_order_of_the_batch_and_the_answer_change_nothing() -> None:
    batch = prompts()
    expected = np.asarray(POLICY.scores(batch, key=KEY).segments)
    np.testing.assert_allclose(POLICY.scores(prompts(40), key=KEY).segments, expected, atol=1e-5)
    turned = POLICY.scores(rows_of(batch, [2, 0, 1]), key=KEY)
    np.testing.assert_allclose(turned.segments, expected[[2, 0, 1]], atol=1e-5)
    other = batch._replace(tokens=np.where(batch.role == Role.ANSWER, 5, batch.tokens))
    np.testing.assert_array_equal(POLICY.scores(other, key=KEY).segments, expected)


def test_what_was_looked_at_is_not_read_again() -> None:
    batch = prompts()
    looking = POLICY.looking_at(batch, anew=True)
    np.testing.assert_array_equal(looking.scores(batch, key=KEY).segments, POLICY.scores(batch, key=KEY).segments)
    read: list[int] = []
    still = replace(looking, look=lambda batch: read.append(1))
    still.scores(batch, key=KEY)
    assert not read


def test_the_question_decides() -> None:
    batch = prompts()
    other = batch._replace(tokens=np.where(batch.role == Role.QUESTION, 5, batch.tokens))
    assert not np.allclose(POLICY.scores(other, key=KEY).segments, POLICY.scores(batch, key=KEY).segments, atol=1e-3)


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_the_budget_is_spent_exactly(rate: float) -> None:
    spends_exactly(POLICY, prompts(), rate)


def test_scores_are_strict() -> None:
    with jax.numpy_dtype_promotion("strict"):
        scores = Embedding.of(MODEL).scores(prompts(), key=KEY)
    assert scores.tokens.dtype == scores.segments.dtype == np.float32
