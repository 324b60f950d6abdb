"""Perplexity of long text: any text file, in windows of context, last sentences and continuation.

The context is the sentences of the window; what comes right before the continuation is the question, which nothing
prunes; the continuation is the "answer", so that the answer NLL of every table is the log-perplexity of the text after
a pruned context. Exact match means nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rcp.data.tasks.base import LazyExamples, Split, check_split
from rcp.data.tasks.generated import Count, Generated, expect, pieces
from rcp.data.tasks.text_files import documents, share
from rcp.data.tokenizer import CharacterTokenizer
from rcp.types import Example, Tokenizer, UserError

_WORD = re.compile(r"\s*\S+")


class Window(NamedTuple):
    """Sentences [begin, answer) are read, and what is said in [answer, end) is to be said."""

    text: Sequence[str]
    begin: int
    answer: int
    end: int


@dataclass(frozen=True)
class LongText(Generated):
    """The task. Fields are the keys of `config.task`.

    Windows lie side by side, in one part of each text for each split; their order is drawn by `seed`.

    Attributes:
      path: a text file, or a folder of *.txt files. A split has as many examples as windows, if no fewer are asked for.
      validation_path, test_path: texts of their own; where empty, the end of each text of `path` serves.
      holdout: the share of each text for validation, and the same again for test.
      answer_tokens: the most that a continuation may have, in tokens.
      recent: at least so many tokens before it are never pruned: the last sentences that have them.
      characters: a model trained from scratch reads characters.
    """

    path: str = ""
    validation_path: str = ""
    test_path: str = ""
    holdout: float = 0.1
    answer_tokens: int = 64
    recent: int = 16
    characters: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_source()
        expect(0 < self.holdout < 0.5, "holdout", self.holdout, "more than 0 and less than 0.5")
        expect(self.answer_tokens > 0, "answer_tokens", self.answer_tokens, "more than 0")
        expect(self.recent > 0, "recent", self.recent, "more than 0")
        least = 2 * (self.answer_tokens + self.recent)
        expected = f"at least {least}, twice config.task.answer_tokens and config.task.recent"
        expect(self.tokens >= least, "tokens", self.tokens, expected)

    def _check_source(self) -> None:
        expect(bool(self.path or self.validation_path or self.test_path), "path", self.path, "the path of a text file")

    def tokenizer(self) -> Tokenizer | None:
        return CharacterTokenizer() if self.characters else None

    @property
    def groups(self) -> tuple[str, ...]:
        return ("text",)

    def ask(self, question: str) -> tuple[str, str]:
        """The text before a continuation as it is."""
        return "", question

    def segment(self, paragraph: str) -> str:
        return f" {paragraph.strip()}"

    def answer_key(self, prediction: str) -> str | None:
        """The continuation with single spaces."""
        return " ".join(prediction.split()) or None

    def check(self, prediction: str, example: Example) -> bool:
        """Whether the continuation begins with the text's own, letter by letter up to white space."""
        said, own = " ".join(prediction.split()), " ".join(example.answer.split())
        return said.startswith(own)

    def example(self, split: Split, index: int, count: Count = pieces) -> Example:
        return self._counted(count, split, None)[index]

    def _counted(self, tokens: Count, split: Split, count: int | None) -> Sequence[Example]:
        check_split(split)
        found = [window for text in self._texts(split) for window in self._windows(text, tokens)]
        if not found:
            raise UserError(
                f"config.task.tokens = {self.tokens}: the {split} split of {self._name(split)} is shorter than a window"
            )
        order = np.random.default_rng(self.seed).permutation(len(found)).tolist()[: self._size(split, count)]
        return LazyExamples(len(order), lambda n: self._example(found[order[n]], tokens, f"{split}/{order[n]}"))

    def _name(self, split: Split) -> str:
        """What the texts of a split are called in messages."""
        return self._path(split)

    def _path(self, split: Split) -> str:
        own = {"train": self.path, "validation": self.validation_path, "test": self.test_path}[split] or self.path
        expect(bool(own), "path", self.path, f"a text file for the {split} split")
        return own

    def _texts(self, split: Split) -> list[Sequence[str]]:
        path = self._path(split)
        key = next(key for key in ("path", "validation_path", "test_path") if getattr(self, key) == path)
        texts = documents(path, key)
        if path != self.path or (self.validation_path and self.test_path):
            return list(texts)
        return [share(text, split, self.holdout) for text in texts]

    def _windows(self, text: Sequence[str], count: Count) -> list[Window]:
        """Side by side. Left out: the end, which fills none, and sentences or words that are too long for one."""
        windows, begin = [], 0
        sizes = np.concatenate([[0], np.cumsum([count(sentence) for sentence in text])]).astype(int)
        while True:
            full = sizes[begin] + self.tokens - self.answer_tokens
            answer = int(np.searchsorted(sizes, full, side="right")) - 1
            end = int(np.searchsorted(sizes, sizes[min(answer, len(text))] + self.answer_tokens, side="left"))
            if answer >= len(text) or end > len(text):
                return windows
            fits = answer - begin >= 2 and count(_WORD.findall(text[answer])[0]) <= self.answer_tokens
            if fits:
                windows.append(Window(text, begin, answer, end))
            begin = end if fits else begin + 1

    def _example(self, window: Window, count: Count, name: str) -> Example:
        text, begin, answer, end = window
        said = ""
        for word in _WORD.findall("".join(text[answer:end])):
            if count(said + word) > self.answer_tokens:
                break
            said += word
        last = answer - 1
        while last > begin + 1 and count("".join(text[last:answer])) < self.recent:
            last -= 1
        question = "".join(text[last:answer])
        room, first = self.room(count, question, said), last
        while first > begin and (size := count(text[first - 1])) <= room:
            room, first = room - size, first - 1
        return Example("", tuple(text[first:last]), question, said, group=self.groups[0], uid=f"long_text/{name}")
