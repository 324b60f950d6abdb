"""Exact match by decoding: for tasks where many texts are right answers (word problems), the task itself judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from rcp.evaluate.sweep import Judge
from rcp.infer.generate import Generated, generate
from rcp.nn.transformer import Transformer
from rcp.types import Batch, Example, Role, Tokenizer


class Check(Protocol):
    """A task's own judgement of a decoded continuation; see `rcp.data.tasks.base.Task.check`."""

    def __call__(self, prediction: str, example: Example) -> bool: ...


def by_decoding(
    model_of: Callable[[Any], Transformer],
    tokenizer: Tokenizer,
    check: Check,
    examples: Sequence[Example],
    *,
    max_new: int,
) -> Judge:
    """The greedy continuation of compacted prompts, `check`ed by the task.

    Args:
      model_of: from the reader's parameters to the model.
      examples: `examples[i]` is the example of the batch rows with index i.
      max_new: tokens decoded at most; decoding ends where every row has ended.
    """

    def decode(params: Any, batch: Batch) -> Generated:
        return generate(
            model_of(params),
            batch.tokens,
            valid=(batch.role != Role.PAD) & (batch.role != Role.ANSWER),
            max_new=max_new,
            eos_ids=(tokenizer.eos_id,),
            pad_id=tokenizer.pad_id,
        )

    def correct(found: Generated, batch: Batch) -> np.ndarray:
        texts = [
            tokenizer.decode([token for token in row[:length].tolist() if token != tokenizer.eos_id])
            for row, length in zip(np.asarray(found.tokens), np.asarray(found.length))
        ]
        return np.array([check(text, examples[int(i)]) for text, i in zip(texts, np.asarray(batch.index))])

    return Judge(decode, correct)
