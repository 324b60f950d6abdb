"""What tasks of generated long prompts share: a length in the reader's tokens, which no prompt exceeds.

The tasks are those of RULER (Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?",
arXiv 2404.06654), with texts of our own: `needle`, `tracking`, `common_words`, `documents`; and `passkey`.
Departures that all of them share: no worked example comes before the text; the question ends with the beginning of its
answer, so that a small model need only go on; and an answer is right when it names what it should and nothing else,
where RULER counts the share of the expected words that occur in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from rcp.data.tasks.base import SPLITS, LazyExamples, Split, check_split
from rcp.types import Example, Tokenizer, UserError

Count = Callable[[str], int]
"""How many tokens a text has."""

PATIENCE = 40
"""So many pieces in a row that do not fit end the filling of a context."""


def pieces(text: str) -> int:
    """Words, digits and marks of a text: about its tokens, where no tokenizer is given."""
    return len(re.findall(r"\d|[^\W\d]+|[^\w\s]", text))


def expect(ok: bool, key: str, value: object, expected: str) -> None:
    """Raises UserError unless `ok`: of the key `config.task.KEY`, what it is and what it should be."""
    if not ok:
        raise UserError(f"config.task.{key} = {value!r}: expected {expected}")


@dataclass(frozen=True)
class Generated:
    """Base of the tasks. Fields are the keys of `config.task`.

    Attributes:
      tokens: the most that a whole prompt may have, from instruction to answer, in tokens of the model that reads it.
        The context is filled up until no further piece fits.
      seed: of every draw; example i of a split depends on (seed, split, i) and the tokenizer alone.
      train_size, eval_size: lengths of the splits where no count is asked for.
    """

    tokens: int = 1024
    seed: int = 0
    train_size: int = 10_000
    eval_size: int = 500

    INSTRUCTION: ClassVar[str] = ""

    def __post_init__(self) -> None:
        expect(self.tokens > 0, "tokens", self.tokens, "more than 0")

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        """The examples where no tokenizer is known: as long in words, digits and marks as they should be in tokens."""
        return self._counted(pieces, split, count)

    def examples_in(self, tokenizer: Tokenizer, split: Split, count: int | None = None) -> Sequence[Example]:
        """The examples for a reader with this tokenizer; see `rcp.data.tasks.base.examples_of`."""

        @lru_cache(maxsize=20_000)
        def tokens(text: str) -> int:
            return len(tokenizer.encode(text)) if text else 0

        return self._counted(tokens, split, count)

    def _counted(self, tokens: Count, split: Split, count: int | None) -> Sequence[Example]:
        check_split(split)
        return LazyExamples(self._size(split, count), lambda index: self.example(split, index, tokens))

    def _size(self, split: Split, count: int | None) -> int:
        return count if count is not None else self.train_size if split == "train" else self.eval_size

    def example(self, split: Split, index: int, count: Count = pieces) -> Example:
        """Example `index` of a split, its length counted by `count`; `support` names the segments it needs."""
        raise NotImplementedError

    def ask(self, question: str) -> tuple[str, str]:
        return self.INSTRUCTION, f"\nQuestion: {question.strip()}\nAnswer:"

    def segment(self, paragraph: str) -> str:
        """After a space, as every sentence of a context."""
        return f" {paragraph.strip()}"

    def tokenizer(self) -> Tokenizer | None:
        return None

    def check(self, prediction: str, example: Example) -> bool:
        """Whether the continuation names just what the answer names, in any order."""
        return self.answer_key(prediction) == self.answer_key(example.answer)

    def answer_key(self, prediction: str) -> str | None:
        """What the continuation names up to its first full stop, in alphabetical order; None where that is nothing."""
        first = re.split(r"[.\n]", prediction.strip())[0]
        named = {name.strip() for name in re.split(r",\s*(?:and\s+)?|\s+and\s+", first)} - {""}
        return ", ".join(sorted(named)) or None

    def room(self, count: Count, *fixed: str) -> int:
        """Tokens that are left of a prompt beside these texts.

        Raises:
          UserError: they have more than a prompt may have.
        """
        needed = sum(map(count, fixed))
        expect(
            needed <= self.tokens, "tokens", self.tokens, f"at least the {needed} that a question with its text takes"
        )
        return self.tokens - needed


def take(filler: Iterable[str], room: int, count: Count) -> list[str]:
    """Texts of `filler` in turn, as long as they fit into `room` tokens; those that do not fit are passed over.

    `filler` may be endless: after `PATIENCE` texts in a row that do not fit the rest of the room stays empty.
    """
    taken: list[str] = []
    missed = 0
    for text in filler:
        size = count(text)
        fits = size <= room
        room -= size if fits else 0
        missed = 0 if fits else missed + 1
        if fits:
            taken.append(text)
        if room <= 0 or missed == PATIENCE:
            break
    return taken


def insert(places: Sequence[int], texts: Sequence[str], filler: Sequence[str]) -> tuple[str, ...]:
    """Filler with `texts[i]` at place `places[i]` of the result, of which all places are below its length."""
    at = dict(zip(places, texts))
    rest = iter(filler)
    return tuple(at[place] if place in at else next(rest) for place in range(len(texts) + len(filler)))


def named(words: Sequence[str]) -> str:
    """An answer: " a.", " a and b." or " a, b and c."."""
    return f" {', '.join(words[:-1])}{' and ' if len(words) > 1 else ''}{words[-1]}."


def of_split(words: Sequence[str], split: str) -> list[str]:
    """Every third word, beginning with another one in each split: what a split asks for no other one does."""
    return list(words[SPLITS.index(split) :: len(SPLITS)])


def numbers(rng: np.random.Generator, split: str, digits: int, size: int) -> list[str]:
    """Different numbers of so many digits; those of a split are in no other one (their remainder by 3 differs).

    Raises:
      UserError: there are not as many.
    """
    low, step = 10 ** (digits - 1), len(SPLITS)
    first = low + (SPLITS.index(split) - low) % step
    there = -(-(10**digits - first) // step)
    expect(
        size <= there, "digits", digits, f"more, {size} different numbers are needed and a split has {there} of these"
    )
    return [str(first + step * int(n)) for n in rng.choice(there, size, replace=False)]
