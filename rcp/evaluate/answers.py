"""Exact match by decoding: for tasks where many texts are right answers (word problems), the task itself judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from rcp.infer.generate import Generated, generate
from rcp.types import Batch, Example, Role, Tokenizer


class Check(Protocol):
    """A task's own judgement of a decoded continuation; see `rcp.data.tasks.base.Task.check`."""

    def __call__(self, prediction: str, example: Example) -> bool: ...


@partial(jax.jit, static_argnames=("graph", "max_new", "eos_ids", "pad_id"))
def _continue(
    graph: Any, state: Any, batch: Batch, *, max_new: int, eos_ids: tuple[int, ...], pad_id: int
) -> Generated:
    model = nnx.merge(graph, state)
    prompt = (batch.role != Role.PAD) & (batch.role != Role.ANSWER)
    return generate(model, batch.tokens, valid=prompt, max_new=max_new, eos_ids=eos_ids, pad_id=pad_id)


def by_decoding(
    model: nnx.Module, tokenizer: Tokenizer, check: Check, examples: Sequence[Example], *, max_new: int
) -> Callable[[Batch], np.ndarray]:
    """A judge for `rcp.evaluate.sweep.Reader.correct`: greedy continuation of compacted prompts, `check`ed by the task.

    Args:
      examples: `examples[i]` is the example of the batch rows with index i.
      max_new: tokens decoded at most; decoding ends where every row has ended.

    Returns:
      From a batch (with its gold answers, which are not read) to bool [batch].
    """
    graph, state = nnx.split(model)
    ends, pad = (tokenizer.eos_id,), tokenizer.pad_id

    def judge(batch: Batch) -> np.ndarray:
        found = _continue(graph, state, batch, max_new=max_new, eos_ids=ends, pad_id=pad)
        texts = [
            tokenizer.decode([token for token in row[:length].tolist() if token != tokenizer.eos_id])
            for row, length in zip(np.asarray(found.tokens), np.asarray(found.length))
        ]
        return np.array([check(text, examples[int(i)]) for text, i in zip(texts, np.asarray(batch.index))])

    return judge
