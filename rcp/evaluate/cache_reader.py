"""A context model for tables: few static capacities, gold answers judged in one pass, compiled programs counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from rcp.eviction.prompt import ReadPrompt
from rcp.eviction.reconstruction import reconstruct
from rcp.infer import programs
from rcp.infer.context import ContextModel, PrunedContext
from rcp.infer.generate import generate
from rcp.nn.cache import for_rows, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.reader import Reading, judge, read
from rcp.types import Batch, Role

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Capacities of what is kept, as shares of the slots that a context was read into."""


class CacheReader(ContextModel):
    """Contexts are read and pruned as `ContextModel` does it. All layers get one capacity, the smallest of `SHARES`.

    So what is read behind a context is compiled once a share, whatever the policy, the allotment and the rate.
    """

    def _capacities(self, counts: np.ndarray, entries: int) -> tuple[int, ...]:
        steps = [int(np.ceil(share * entries)) for share in SHARES]
        return (min(step for step in steps if step >= counts.max()),) * len(counts)

    def repeated(self, read: ReadPrompt, contexts: Sequence[Sequence[int]]) -> ReadPrompt:
        """What was read, after the model has repeated it: the statistic that KVzip needs, where it was not gathered."""
        tokens = np.full((len(contexts), read.cache.capacity), self._pad_id, np.int32)
        for row, ids in zip(tokens, contexts, strict=True):
            row[: len(ids)] = ids
        return _repeat(*self.weights.model, read, tokens, repeat=self._repeat)

    def judge(
        self,
        pruned: PrunedContext,
        questions: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        *,
        width: int,
        max_answer: int,
    ) -> Reading:
        """What the model makes of gold answers, given one after the other, behind questions behind a context.

        Args:
          questions, answers: as many for each context, those of a context side by side.
          width: static, holds any question with its answer. max_answer: static bound on an answer's tokens.
        """
        tokens = np.full((len(questions), width), self._pad_id, np.int32)
        valid, gold = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
        for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            end = len(question) + len(answer)
            tokens[row, :end] = [*question, *answer]
            valid[row, :end], gold[row, len(question) : end] = True, True
        return _judge(*self.weights.model, pruned.context, tokens, valid, gold, max_answer=max_answer)

    def read_anew(self, batch: Batch, *, max_answer: int) -> Reading:
        """What the model makes of whole prompts, nothing pruned in the cache."""
        return _read_anew(*self.weights.model, batch, max_answer=max_answer)

    def decode_anew(self, batch: Batch, *, max_new: int) -> list[list[int]]:
        """Greedy continuations of whole prompts, their gold answers left out."""
        valid = (batch.role != Role.PAD) & (batch.role != Role.ANSWER)
        return self._ids(_decode_anew(*self.weights.model, batch.tokens, valid, **self._decoding(max_new)))


@partial(jax.jit, static_argnames=("graph", "repeat"))
def _repeat(graph, params, read, tokens, *, repeat):
    found = reconstruct(nnx.merge(graph, params), read.cache, tokens, repeat)
    return read._replace(statistics=read.statistics._replace(reconstruction=found))


@partial(jax.jit, static_argnames=("graph", "max_answer"))
def _judge(graph, params, context, tokens, valid, gold, *, max_answer):
    model = nnx.merge(graph, params)
    context = for_rows(context, len(tokens))
    tail = tail_of(context, tokens.shape[1], model.dtype)
    h, _, _ = read_chunk(model, tokens, tail, context=context, valid=valid, slots=0)
    return judge(model, h, tokens, gold, max_answer=max_answer)


@partial(jax.jit, static_argnames=("graph", "max_answer"))
def _read_anew(graph, params, batch, *, max_answer):
    return read(nnx.merge(graph, params), batch, max_answer=max_answer)


@partial(jax.jit, static_argnames=("graph", "max_new", "eos_ids", "pad_id"))
def _decode_anew(graph, params, tokens, valid, **options):
    return generate(nnx.merge(graph, params), tokens, valid=valid, **options)


PROGRAMS: dict[str, Callable[..., Any]] = {
    "read": programs.read,
    "repeat": _repeat,
    "choose": programs.choose,
    "compact": programs.prune,
    "judge": _judge,
    "decode": programs.answer,
    "read anew": _read_anew,
    "decode anew": _decode_anew,
}


def compiled() -> dict[str, int]:
    """How many programs of each kind there are; one that is called with new shapes or static arguments is one more."""
    return {name: program._cache_size() for name, program in PROGRAMS.items()}  # pyright: ignore[reportFunctionMemberAccess]
