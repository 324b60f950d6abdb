"""The oracles that read the gold answer, against loops that write each prompt and read it by itself."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rcp.policies import Alone, Greedy
from rcp.types import Batch, Role
from tests.policies.prompts import KEY, MODEL, PROMPTS, SEGMENTS, log_probs, prompts, rows_of, spends_exactly

ALONE = Alone.of(MODEL, length=16, max_answer=3)
GREEDY = Greedy.of(MODEL, lengths=(16, 22), max_answer=3)


def answer_gain(batch: Batch, row: int, segments: set[int]) -> float:
    """Mean log p of the answer's tokens with these segments as the context."""
    role = batch.role[row]
    chosen = np.isin(batch.segment[row], list(segments)) | np.isin(role, (Role.INSTRUCTION, Role.QUESTION, Role.ANSWER))
    tokens, answers = batch.tokens[row, chosen], int(np.sum(role == Role.ANSWER))
    found = np.take_along_axis(log_probs(tokens)[:-1], tokens[1:, None], axis=1)[:, 0]
    return float(found[-answers:].mean())


def naive_greedy(batch: Batch, row: int, steps: int) -> list[int]:
    left = list(range(len(PROMPTS[row].segments)))
    alone = {s: answer_gain(batch, row, {s}) for s in left}
    chosen: list[int] = []
    for _ in range(min(steps, len(left))):
        best = max(left, key=lambda s: answer_gain(batch, row, {*chosen, s}))
        chosen.append(best)
        left.remove(best)
    return chosen + sorted(left, key=lambda s: -alone[s])


def test_alone_is_the_likelihood_of_the_answer_after_each_segment() -> None:
    batch = prompts()
    found = np.asarray(ALONE.scores(batch, key=KEY).segments)
    for row, prompt in enumerate(PROMPTS):
        expected = [answer_gain(batch, row, {s}) for s in range(len(prompt.segments))]
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-4)


@pytest.mark.parametrize("lengths", [(16,), (16, 22), (16, 22, 32), (16, 22, 32, 32, 32, 32, 32)])
def test_greedy_adds_what_helps_most_beside_the_chosen(lengths: tuple[int, ...]) -> None:
    batch = prompts()
    policy = Greedy.of(MODEL, lengths=lengths, max_answer=3)
    found = np.asarray(policy.scores(batch, key=KEY).segments)
    for row, prompt in enumerate(PROMPTS):
        order = np.argsort(-found[row], kind="stable")[: len(prompt.segments)].tolist()
        assert order == naive_greedy(batch, row, len(lengths))


@pytest.mark.parametrize("policy", [ALONE, GREEDY], ids=lambda policy: policy.name)
def test_padding_and_order_of_the_batch_change_nothing(policy: Alone | Greedy) -> None:
    expected = np.asarray(policy.scores(prompts(), key=KEY).segments)
    turned = policy.scores(rows_of(prompts(40), [2, 0, 1]), key=KEY)
    for row, of in enumerate([2, 0, 1]):
        n = len(PROMPTS[of].segments)
        np.testing.assert_allclose(turned.segments[row, :n], expected[of, :n], atol=1e-4)
    spends_exactly(policy, prompts(), 0.4)


@pytest.mark.parametrize("policy", [ALONE, GREEDY], ids=lambda policy: policy.name)
def test_the_gold_answer_decides(policy: Alone | Greedy) -> None:
    batch = prompts()
    scores = policy.scores(batch, key=KEY)
    other = policy.scores(batch._replace(tokens=np.where(batch.role == Role.ANSWER, 5, batch.tokens)), key=KEY)
    assert not np.allclose(scores.segments, other.segments, atol=1e-2)
    assert scores.segments.shape == (len(PROMPTS), SEGMENTS)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(scores))
