"""The values that pass between the rooms of the codebase.

Only plain containers live here, so that `rcp.data` (numpy, no jax) and `rcp.nn` (jax) share one vocabulary. Arrays in
a `Batch` are numpy when they leave the pipeline and jax arrays inside a compiled step; a `NamedTuple` is a pytree in
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Role(IntEnum):
    """What a token of a prompt is for. A prompt is laid out in this order; padding is at its right end."""

    PAD = 0
    INSTRUCTION = 1
    CONTEXT = 2
    QUESTION = 3
    ANSWER = 4


@dataclass(frozen=True)
class Example:
    """One problem as text. Concatenating the pieces in order gives exactly the text that the model reads.

    Attributes:
      instruction: read first, never pruned; may be empty.
      context: the candidate segments (sentences, few-shot examples, paragraphs), each with its own separator.
      question: read after the context, never pruned; ends where the answer begins.
      answer: the gold continuation, with its leading space where the text needs one and with its terminator.
      support: numbers of the segments that the answer needs, or None where the task does not know.
      group: a label by which evaluation reports apart, such as "one-hop".
      forced: (segment, start, end) character spans of the context that must be kept.
      uid: names the example in reports and error messages (file and line for files).
    """

    instruction: str
    context: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...] | None = None
    group: str = ""
    forced: tuple[tuple[int, int, int], ...] = ()
    uid: str = ""


class Batch(NamedTuple):
    """A batch of tokenised prompts of one static length. Shapes: B examples, T tokens, S segments.

    Each piece of an `Example` is tokenised apart, so that dropping a segment drops exactly its tokens.
    """

    tokens: Any  # int32 [B, T]; instruction, context, question, answer, then padding
    role: Any  # int8 [B, T]; a Role
    segment: Any  # int32 [B, T]; number of the context segment, -1 outside the context
    forced: Any  # bool [B, T]; context tokens that must be kept
    support: Any  # int8 [B, S]; 1 needed, 0 not needed, -1 not known or no such segment
    weight: Any  # float32 [B]; 1, or 0 for rows that only fill the batch
    index: Any  # int32 [B]; number of the example in its dataset (seeds its random draws)
    group: Any  # int32 [B]; number of the example's group


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back, without special tokens unless the text spells them."""

    vocab_size: int
    pad_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class UserError(Exception):
    """Input that a user can mend. The message names the file, line or config key and what was expected."""
