"""Phrases found by rule, and whole phrases kept by their mean self-information."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import jax
import numpy as np
import pytest

from rcp.policies import Selective
from rcp.policies.selective import phrase_numbers, phrase_starts
from rcp.types import Batch, Role
from tests.policies.prompts import KEY, MODEL, PROMPTS, log_probs, prompts, rows_of, spends_exactly

WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    ".",
    "Anna",
    "lives",
    "in",
    "Oslo",
    ",",
    "and",
    "Tom",
    "went",
    "to",
    "a",
    "dog",
)


def decode(ids: Sequence[int]) -> str:
    return "".join(" " + WORDS[i % len(WORDS)] for i in ids)


POLICY = Selective.of(MODEL, decode=decode)


def phrases_of(texts: Sequence[str]) -> list[str]:
    numbers = phrase_numbers(texts)
    return ["".join(t for t, n in zip(texts, numbers) if n == number) for number in range(numbers.max() + 1)]


def test_phrases_end_at_punctuation_and_before_function_words() -> None:
    texts = [" Anna", " lives", " in", " the", " old", " ci", "ty", " of", " Oslo", ",", " not", " Rome", ".", " It"]
    assert phrases_of(texts) == [" Anna lives", " in the old city", " of Oslo,", " not Rome.", " It"]
    text = "A: 3.5 * 2 = 7\nthe thesis isn't his"
    starts = phrase_starts(text)
    assert [text[a:b] for a, b in zip(starts, [*starts[1:], None])] == [
        "A: ",
        "3.5 * 2 = 7\n",
        "the thesis isn't his",
    ]


def test_pieces_of_words_and_white_space_stay_with_their_phrase() -> None:
    assert phrase_numbers(["Th", "e", " ", "the", "sis", " of", "ten", " of"]).tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert phrase_numbers(["...", " ", "\n"]).tolist() == [0, 0, 0]
    assert phrase_numbers(["(", "word", ")"]).tolist() == [0, 0, 0]


def naive_kept(batch: Batch, row: int, budget: int) -> list[int]:
    tokens, segment = batch.tokens[row], batch.segment[row]
    length = int(np.sum(batch.role[row] != Role.PAD))
    information = np.zeros(length)
    following = tokens[1:length, None]
    information[1:] = -np.take_along_axis(log_probs(tokens[:length])[:-1], following, axis=1)[:, 0]
    phrases: list[list[int]] = []
    for s in range(segment.max() + 1):
        inside = np.flatnonzero(segment == s)
        numbers = phrase_numbers([decode([token]) for token in tokens[inside]])
        phrases += [inside[numbers == n].tolist() for n in range(numbers.max() + 1)]
    phrases.sort(key=lambda phrase: -information[phrase].mean())
    first = int(np.flatnonzero(batch.role[row] == Role.CONTEXT)[0])
    return sorted(i - first for i in list(chain.from_iterable(phrases))[:budget])


@pytest.mark.parametrize("rate", [0.1, 0.35, 0.7])
def test_whole_phrases_are_kept_by_their_mean(rate: float) -> None:
    batch = prompts()
    for row, kept in enumerate(spends_exactly(POLICY, batch, rate)):
        assert kept.tolist() == naive_kept(batch, row, len(kept))


def test_phrases_are_found_where_the_decoder_drops_a_leading_space() -> None:
    """As that of SentencePiece does."""
    stripped = Selective.of(MODEL, decode=lambda ids: decode(ids)[1:])
    batch = prompts()
    np.testing.assert_array_equal(stripped.phrases(batch), POLICY.phrases(batch))


def test_padding_and_order_of_the_batch_change_nothing() -> None:
    expected = spends_exactly(POLICY, prompts(), 0.4)
    found = spends_exactly(POLICY, rows_of(prompts(40), [2, 0, 1]), 0.4)
    for row, of in enumerate([2, 0, 1]):
        np.testing.assert_array_equal(found[row], expected[of])


def test_neither_question_nor_answer_is_looked_at() -> None:
    batch = prompts()
    other = batch._replace(tokens=np.where(batch.role > Role.CONTEXT, 5, batch.tokens))
    for found, expected in zip(spends_exactly(POLICY, other, 0.4), spends_exactly(POLICY, batch, 0.4)):
        np.testing.assert_array_equal(found, expected)


def test_phrases_number_the_context_of_each_prompt() -> None:
    batch = prompts()
    numbers = POLICY.phrases(batch)
    assert len(numbers) == len(PROMPTS) and (numbers[batch.role != Role.CONTEXT] == 0).all()
    for row in range(len(PROMPTS)):
        steps = np.diff(numbers[row, batch.role[row] == Role.CONTEXT])
        border = np.diff(batch.segment[row, batch.role[row] == Role.CONTEXT]) > 0
        assert set(steps.tolist()) <= {0, 1} and (steps[border] == 1).all()
    assert jax.tree.leaves(POLICY.scores(batch, key=KEY))[0].dtype == np.float32
