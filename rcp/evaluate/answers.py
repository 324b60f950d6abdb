"""Exact match by decoding: for tasks where many texts are right answers (word problems), the task itself judges.

With several samples, self-consistency (Wang et al., arXiv 2203.11171): each is drawn at a temperature, their final
answers vote, and the answer of most is judged. The marginal over reasoning paths is a plain count, as in the paper's
unweighted vote; of answers with as many votes the one that came first wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from rcp.config import Config
from rcp.data.tasks.base import Task, answer_end, answer_key
from rcp.evaluate.reading import Judge
from rcp.infer.generate import Generated, generate, generate_samples
from rcp.nn.transformer import Transformer
from rcp.types import Batch, Example, Role, Tokenizer


class Check(Protocol):
    """A task's own judgement of a decoded continuation; see `rcp.data.tasks.base.Task.check`."""

    def __call__(self, prediction: str, example: Example) -> bool: ...


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded: `samples` continuations of `max_new` tokens, greedy where it is one.

    `key` gives what votes: the answer in a continuation, or None; see `rcp.data.tasks.base.answer_key`. `end`: text
    that ends an answer; decoding stops there where it is one token.
    """

    max_new: int
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    key: Callable[[str], str | None] = str.strip
    end: str = ""

    def __str__(self) -> str:
        if self.samples == 1:
            return "the answer was decoded greedily and judged by the task"
        drawn = f"temperature {self.temperature:g}" + (f", top-p {self.top_p:g}" if self.top_p < 1 else "")
        return f"the answer that most of {self.samples} samples gave ({drawn}) was judged by the task"

    def chosen(self, texts: Sequence[str]) -> str:
        """The first of the continuations that give the answer of most."""
        return majority(texts, self.key)


def decoding_of(config: Config, task: Task) -> Decoding:
    """What the section eval says about decoding."""
    e = config.eval
    new, key, end = e.decode or e.endpoint.max_new, answer_key(task), answer_end(task)
    return Decoding(new, e.samples, e.temperature, e.top_p, config.seed, key, end)


def majority(texts: Sequence[str], key: Callable[[str], str | None]) -> str:
    """The first text with the key that most have; ties go to the key that came first. None is no vote."""
    keys = [key(text) for text in texts]
    votes = Counter(found for found in keys if found is not None)
    return texts[keys.index(votes.most_common(1)[0][0])] if votes else texts[0]


def by_decoding(
    model_of: Callable[[Any], Transformer],
    tokenizer: Tokenizer,
    check: Check,
    examples: Mapping[int, Example],
    decoding: Decoding,
) -> Judge:
    """The continuation of compacted prompts, or what most of several say, `check`ed by the task.

    Args:
      model_of: from the reader's parameters to the model.
      examples: by their number, the index of the batch's rows.
    """
    end = tokenizer.encode(decoding.end) if decoding.end else []
    ends, pad_id = (tokenizer.eos_id, *(end if len(end) == 1 else ())), tokenizer.pad_id

    def decode(params: Any, batch: Batch) -> Generated:
        model, valid = model_of(params), (batch.role != Role.PAD) & (batch.role != Role.ANSWER)
        rest = {"valid": valid, "max_new": decoding.max_new, "eos_ids": ends, "pad_id": pad_id}
        if decoding.samples == 1:
            found = generate(model, batch.tokens, **rest)
            return Generated(found.tokens[:, None], found.length[:, None])
        return generate_samples(
            model,
            batch.tokens,
            jnp.asarray(batch.index),
            samples=decoding.samples,
            temperature=decoding.temperature,
            top_p=decoding.top_p if decoding.top_p < 1 else None,
            seed=decoding.seed,
            **rest,
        )

    def text(tokens: np.ndarray, length: int) -> str:
        return tokenizer.decode([token for token in tokens[:length].tolist() if token != tokenizer.eos_id])

    def correct(found: Generated, batch: Batch) -> np.ndarray:
        rows = zip(np.asarray(found.tokens), np.asarray(found.length), np.asarray(batch.index))
        said = [(decoding.chosen([text(*one) for one in zip(tokens, lengths)]), i) for tokens, lengths, i in rows]
        return np.array([check(answer, examples[int(i)]) for answer, i in said])

    return Judge(decode, correct)
