"""Pruned prompts back to text, as their task writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rcp.data.pipeline import EncodedTask
from rcp.types import Batch, Example, Role, Tokenizer


def text_left(
    tokenizer: Tokenizer, texts: Sequence[str], whole: Sequence[np.ndarray], left: Sequence[np.ndarray]
) -> tuple[str, tuple[int, ...]]:
    """The text of a context's kept tokens, and the numbers of the segments that it is from.

    Args:
      texts: of the segments. One that is kept whole stands as it is, letter by letter; one that is cut keeps the white
        space around it, which parts it from its neighbours.
      whole, left: ids of each segment, and of what is left of it.
    """
    kept, out, end = [], "", ""
    for s, (text, ids, some) in enumerate(zip(texts, whole, left, strict=True)):
        body, uncut = text, len(some) == len(ids)
        if not uncut:
            body = tokenizer.decode(some.tolist()).strip()
            body = text[: len(text) - len(text.lstrip())] + body if body else ""
        if body:
            out, end = out + end + body, "" if uncut else text[len(text.rstrip()) :]
            kept.append(s)
    return out, tuple(kept)


class Sent(NamedTuple):
    """A prompt as text: instruction, what is left of the context, question."""

    instruction: str
    context: str
    question: str

    @property
    def text(self) -> str:
        return self.instruction + self.context + self.question


class Texts:
    """The texts of pruned prompts, as their task writes them."""

    def __init__(self, encoded: EncodedTask, tokenizer: Tokenizer):
        """`encoded[i]` is the example of the batch rows with index i."""
        self.encoded, self.tokenizer = encoded, tokenizer

    def of(self, batch: Batch) -> list[Sent]:
        """The text of every row of a compacted batch (numpy), the answer left out."""
        return [self._row(batch, row) for row in range(len(batch.index))]

    def example(self, index: int) -> Example:
        return self.encoded.examples[int(index)]

    def of_mask(self, index: int, keep: np.ndarray) -> Sent:
        """The text that a keep mask over a whole prompt, as it stands in a batch, leaves of an example."""
        whole, example = self.encoded[int(index)], self.example(index)
        ids = np.concatenate(whole.context)
        segment = np.repeat(np.arange(len(whole.context)), [len(piece) for piece in whole.context])
        kept = keep[len(whole.instruction) :][: len(ids)]
        return Sent(example.instruction, self._left(int(index), ids[kept], segment[kept]), example.question)

    def context(self, batch: Batch, row: int, mask: np.ndarray) -> str:
        """What a mask over its context tokens leaves of the context of a whole prompt."""
        inside = batch.role[row] == Role.CONTEXT
        return self._left(int(batch.index[row]), batch.tokens[row][inside][mask], batch.segment[row][inside][mask])

    def _row(self, batch: Batch, row: int) -> Sent:
        index, inside = int(batch.index[row]), batch.role[row] == Role.CONTEXT
        text = self._left(index, batch.tokens[row][inside], batch.segment[row][inside])
        return Sent(self.example(index).instruction, text, self.example(index).question)

    def _left(self, index: int, tokens: np.ndarray, segment: np.ndarray) -> str:
        example, whole = self.example(index), self.encoded[index]
        texts = example.context if whole.numbers is None else [example.context[n] for n in whole.numbers]
        left = [tokens[segment == s] for s in range(len(texts))]
        return text_left(self.tokenizer, texts, whole.context, left)[0]
