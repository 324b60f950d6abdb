"""What is asked of pruned contexts: prompts cut into what is read before, behind, and what is the gold answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from rcp import sampling
from rcp.evaluate.answers import Check
from rcp.evaluate.budgets import Budget
from rcp.evaluate.cells import Piece
from rcp.nn.reader import Reading
from rcp.types import Batch, Example, Role

One = TypeVar("One")


@dataclass(frozen=True)
class Asking:
    """How contexts are asked.

    Attributes:
      width, max_answer: static bounds on the tokens of question and answer, and of the answer.
      aware: policies see the question.
      decode: tokens to decode for exact match, judged by `check`; 0: teacher-forced.
      examples: of each question, the examples by their number; for `check`.
      seed: of what draws.
    """

    width: int
    max_answer: int
    aware: bool = False
    decode: int = 0
    check: Check | None = None
    examples: Sequence[Mapping[int, Example]] = ()
    seed: int = 0


@dataclass(frozen=True)
class AskedBatch:
    """The prompts of a batch as token ids, a row each.

    Attributes:
      contexts: instruction and context. heads: what of the question is read with them.
      tails: what of it is read behind what was kept. answers: the gold ones.
    """

    batch: Batch
    contexts: list[list[int]]
    heads: list[list[int]]
    tails: list[list[int]]
    answers: list[list[int]]

    @classmethod
    def of(cls, batch: Batch, aware: bool) -> AskedBatch:
        """`aware`: the question is read with the context, its last token (then taken back) once more behind it."""
        tokens, role = np.asarray(batch.tokens), np.asarray(batch.role)

        def ids(*roles: Role) -> list[list[int]]:
            return [row[np.isin(own, roles)].tolist() for row, own in zip(tokens, role, strict=True)]

        questions = ids(Role.QUESTION)
        heads = [question if aware else [] for question in questions]
        tails = [question[-1:] if aware else question for question in questions]
        return cls(batch, ids(Role.INSTRUCTION, Role.CONTEXT), heads, tails, ids(Role.ANSWER))


def in_turn(questions: Sequence[Sequence[One]]) -> list[One]:
    """From [question][context] to a flat list with the questions of a context side by side."""
    return [one for of_context in zip(*questions, strict=True) for one in of_context]


def count_of(tokens: np.ndarray, budget: Budget) -> np.ndarray:
    """How many of so many tokens a budget keeps; none at rate 0."""
    if budget.tokens is not None:
        return np.minimum(tokens, budget.tokens)
    if budget.rate == 0:
        return np.zeros_like(tokens)
    return np.asarray(sampling.count_of_rate(jnp.asarray(tokens), budget.rate))


def needed_entries(asked: AskedBatch, slots: int, budget: Budget, sinks: int) -> Bool[np.ndarray, "batch slots"]:
    """The tokens of the segments that the answer needs, the first ones where the budget less the sinks has fewer."""
    batch = asked.batch
    place = np.maximum(np.asarray(batch.segment), 0)
    needed = (np.asarray(batch.role) == Role.CONTEXT) & (np.take_along_axis(batch.support, place, axis=1) == 1)
    room = count_of(np.array([len(context) for context in asked.contexts]), budget) - sinks
    needed &= np.cumsum(needed, axis=1) <= room[:, None]
    width = min(slots, needed.shape[1])
    return np.pad(needed[:, :width], ((0, 0), (0, slots - width)))


def piece_of(
    batches: Sequence[Batch],
    reading: Reading,
    right: np.ndarray,
    counts: Mapping[str, np.ndarray],
    prune_seconds: float,
    model_seconds: float,
) -> Piece:
    """What was found of the contexts of a batch, whose questions are the rows of the reading, side by side.

    Of a context: the share of its questions that were answered rightly, and the NLL over all tokens of their answers.
    """
    first, times = batches[0], len(batches)
    real = np.asarray(first.weight) > 0
    weight = np.stack([np.asarray(batch.weight) > 0 for batch in batches], axis=1)[real]

    def each(values: Any) -> np.ndarray:
        return np.asarray(values).reshape(-1, times)[real]

    return Piece(
        index=first.index[real],
        group=first.group[real],
        answer_tokens=np.maximum((each(reading.answer_tokens) * weight).sum(axis=1), 1),
        nll_sum=(each(reading.nll_sum) * weight).sum(axis=1),
        em=right[np.repeat(real, times)] if times == 1 else (each(right) * weight).sum(axis=1) / weight.sum(axis=1),
        keep=None,
        prune_seconds=prune_seconds,
        model_seconds=model_seconds,
        **{name: np.asarray(values)[real] for name, values in counts.items()},
    )
