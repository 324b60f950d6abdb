"""Examples as token ids, and batches of them at a few static lengths.

Every piece of an example (instruction, each context segment, question, answer) is tokenised apart, so that dropping a
segment drops exactly its tokens. Prompts are padded at the right; they are not packed several to a row, since a pruned
prompt is short and the budget is counted per example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rcp.data.spans import token_spans
from rcp.types import Batch, Example, Role, Tokenizer, UserError


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """The ids of one example, piece by piece.

    Attributes:
      instruction, question, answer: int32 [n].
      context: int32 [n_s] for each segment s.
      forced: bool [n_s] for each segment s; tokens that must be kept.
      support: int8 [segments]; 1 needed, 0 not needed, -1 not known.
      index: number of the example in its dataset.
      group: number of the example's group.
      uid: its name in messages.
      numbers: of the segments in the example as text, where some were left out; None: all are there.
    """

    instruction: np.ndarray
    context: tuple[np.ndarray, ...]
    question: np.ndarray
    answer: np.ndarray
    forced: tuple[np.ndarray, ...]
    support: np.ndarray
    index: int = 0
    group: int = 0
    uid: str = ""
    numbers: tuple[int, ...] | None = None

    @property
    def fixed(self) -> int:
        """Tokens that are read whatever is pruned: of instruction, question and answer."""
        return len(self.instruction) + len(self.question) + len(self.answer)

    @property
    def length(self) -> int:
        """Tokens of the whole prompt, answer included."""
        return self.fixed + sum(len(segment) for segment in self.context)


def encode(example: Example, tokenizer: Tokenizer, *, index: int = 0, group: int = 0) -> EncodedExample:
    """Tokenises each piece of `example` apart.

    Raises:
      UserError: the context is empty, or the question or the answer has no tokens.
    """
    context = tuple(_ids(tokenizer, segment) for segment in example.context)
    if not sum(len(ids) for ids in context):
        raise UserError(f"{example.uid or 'example'}: empty context: expected at least one segment with text in it")
    question, answer = _ids(tokenizer, example.question), _ids(tokenizer, example.answer)
    if not len(question):
        raise UserError(f"{example.uid or 'example'}: empty question")
    if not len(answer):
        raise UserError(f"{example.uid or 'example'}: empty answer")
    spans: list[list[tuple[int, int]]] = [[] for _ in context]
    for segment, start, end in example.forced:
        if not 0 <= segment < len(context):
            raise UserError(f"{example.uid or 'example'}: forced span in segment {segment} of {len(context)}")
        spans[segment].append((start, end))
    forced = tuple(_covers(tokenizer, *piece) for piece in zip(context, example.context, spans, strict=True))
    support = np.full(len(context), -1 if example.support is None else 0, np.int8)
    support[list(example.support or ())] = 1
    instruction = _ids(tokenizer, example.instruction)
    return EncodedExample(instruction, context, question, answer, forced, support, index, group, example.uid)


def _ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.asarray(tokenizer.encode(text) if text else [], np.int32)


def _covers(tokenizer: Tokenizer, ids: np.ndarray, text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [len(ids)]: tokens that hold some character of text[start:end] for one of the spans (start, end).

    All of them for the whole text, and where decoding is not exact.
    """
    if not spans:
        return np.zeros(len(ids), bool)
    if any(start <= 0 and end >= len(text) for start, end in spans) or tokenizer.decode(ids.tolist()) != text:
        return np.ones(len(ids), bool)
    held = token_spans(tokenizer, ids.tolist(), text)
    if held is None:
        return np.ones(len(ids), bool)
    covered = np.zeros(len(ids), bool)
    for start, end in spans:
        covered |= (held[:, 0] < end) & (held[:, 1] > start)
    return covered


def bucket(length: int, lengths: Sequence[int]) -> int | None:
    """The smallest of the static `lengths` that holds `length` tokens, or None."""
    return min((limit for limit in lengths if limit >= length), default=None)


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def check_fits(example: EncodedExample, length: int, segments: int, answer: int | None = None) -> None:
    """Raises UserError where the example has over `length` tokens, `segments` segments or `answer` answer tokens."""
    name = example.uid or f"example {example.index}"
    if example.length > length:
        raise UserError(
            f"{name}: the prompt has {example.length} tokens, the limit is {length}: "
            "raise config.data.lengths or offer less context"
        )
    if len(example.context) > segments:
        raise UserError(
            f"{name}: the context has {len(example.context)} segments, the limit is {segments}: "
            "raise config.data.max_segments"
        )
    if answer is not None and len(example.answer) > answer:
        raise UserError(
            f"{name}: the answer has {len(example.answer)} tokens, the limit is {answer}: raise config.data.max_answer"
        )


def drop_segments(example: EncodedExample, length: int, segments: int) -> EncodedExample:
    """`example` without as many of its last segments as it needs to fit; segments that are needed or forced stay.

    Raises UserError where it still does not fit.
    """
    keep = list(range(len(example.context)))
    spare = [s for s in keep if example.support[s] != 1 and not example.forced[s].any()]
    excess = example.length - length
    while spare and len(keep) > 1 and (excess > 0 or len(keep) > segments):
        last = spare.pop()
        keep.remove(last)
        excess -= len(example.context[last])
    example = replace(
        example,
        context=tuple(example.context[s] for s in keep),
        forced=tuple(example.forced[s] for s in keep),
        support=example.support[keep],
        numbers=tuple(keep),
    )
    check_fits(example, length, segments)
    return example


def collate(examples: Sequence[EncodedExample], length: int, segments: int, batch: int, *, pad_id: int = 0) -> Batch:
    """One `Batch` of `batch` rows, `length` tokens and `segments` segments.

    Rows past the examples repeat the first example with weight 0, so that no row is empty.

    Raises:
      UserError: a prompt or its number of segments is over the limit; the message names the example.
      ValueError: no example, or more than `batch`.
    """
    if not 1 <= len(examples) <= batch:
        raise ValueError(f"{len(examples)} examples for a batch of {batch}")
    out = Batch(
        tokens=np.full((batch, length), pad_id, np.int32),
        role=np.zeros((batch, length), np.int8),
        segment=np.full((batch, length), -1, np.int32),
        forced=np.zeros((batch, length), bool),
        support=np.full((batch, segments), -1, np.int8),
        weight=np.zeros(batch, np.float32),
        index=np.zeros(batch, np.int32),
        group=np.zeros(batch, np.int32),
    )
    out.weight[: len(examples)] = 1
    for row in range(batch):
        example = examples[row] if row < len(examples) else examples[0]
        check_fits(example, length, segments)
        pieces = [(example.instruction, Role.INSTRUCTION, -1)]
        pieces += [(ids, Role.CONTEXT, s) for s, ids in enumerate(example.context)]
        pieces += [(example.question, Role.QUESTION, -1), (example.answer, Role.ANSWER, -1)]
        at = 0
        for ids, role, segment in pieces:
            span = slice(at, at + len(ids))
            out.tokens[row, span], out.role[row, span], out.segment[row, span] = ids, role, segment
            if segment >= 0:
                out.forced[row, span] = example.forced[segment]
            at += len(ids)
        out.support[row, : len(example.context)] = example.support
        out.index[row], out.group[row] = example.index, example.group
    return out
