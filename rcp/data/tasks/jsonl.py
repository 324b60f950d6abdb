"""A user's own problems, one JSON object a line.

    {"question": "...", "answer": "...", "context": "paragraphs separated by blank lines" or ["segment", ...]}
    {"question": "...", "answer": "...", "examples": [{"question": "...", "answer": "..."}, "or text", ...]}

Optional: "instruction" (text), "support" (numbers of the segments that are needed), "group" (text), "forced" (text
that must be kept wherever it occurs in the context).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rcp.data.sources import read_jsonl, text_field
from rcp.data.tasks.base import LazyExamples, Split, check_split, same_text
from rcp.types import Example, Tokenizer, UserError

_PARAGRAPH = re.compile(
    r"""
    (?:\A (?:[ \t]*\r?\n)+)?                           # blank lines before the first
    (?:[^\r\n] | \r(?!\n) | \r?\n(?![ \t]*\r?\n))+    # up to a line's end with a blank line behind it
    (?:\r?\n[ \t]*)*
    """,
    re.VERBOSE,
)


def split_segments(text: str) -> tuple[str, ...]:
    """The paragraphs of a text, each with the blank lines that follow it; concatenated they are the text again.

    Blank lines before the first belong to it. A line ends with "\\n" or "\\r\\n".
    """
    return tuple(_PARAGRAPH.findall(text)) if text.strip() else ()


def _separated(segment: str) -> str:
    return segment if segment[-1].isspace() else segment + "\n\n"


@dataclass(frozen=True)
class Jsonl:
    """The task. Fields are the keys of `config.task`.

    Attributes:
      path: the file that training examples come from.
      validation_path, test_path: files of their own; where empty, `holdout` of `path` serves for each of them.
      holdout: the fraction of `path` set aside for validation, and the same again for test.
      question_format: `{question}` with what stands around it; ends where the answer begins.
      example_format: the same for `{question}` and `{answer}` of an entry of "examples".
      seed: of the division.
    """

    path: str = ""
    validation_path: str = ""
    test_path: str = ""
    holdout: float = 0.1
    question_format: str = "Question: {question}\nAnswer:"
    example_format: str = "Question: {question}\nAnswer: {answer}\n\n"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.path or self.validation_path or self.test_path):
            raise UserError("config.task.path is empty: expected the path of a JSONL file")
        if not 0 < self.holdout < 0.5:
            raise UserError(f"config.task.holdout = {self.holdout}: expected more than 0 and less than 0.5")
        for key, names in (("question_format", ("question",)), ("example_format", ("question", "answer"))):
            text = getattr(self, key)
            try:
                fine = all(f"<{name}>" in text.format(**{name: f"<{name}>" for name in names}) for name in names)
            except (KeyError, IndexError, ValueError):
                fine = False
            if not fine:
                expected = " and ".join(f"{{{name}}}" for name in names)
                raise UserError(f"config.task.{key} = {text!r}: expected text with {expected}; other braces doubled")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in the files, sorted."""
        paths = {path for path in (self.path, self.validation_path, self.test_path) if path}
        return tuple(sorted({example.group for path in paths for example in self._read(path)}))

    def ask(self, question: str) -> tuple[str, str]:
        return "", self.question_format.format(question=question.strip())

    def segment(self, paragraph: str) -> str:
        return _separated(paragraph)

    def tokenizer(self) -> Tokenizer | None:
        return None

    def check(self, prediction: str, example: Example) -> bool:
        """Whether the continuation begins with the answer, as many lines of it as the answer has: white space at the
        ends of lines and a final full stop apart."""
        gold = example.answer.strip()
        lines = prediction.strip().splitlines()[: len(gold.splitlines())]
        return same_text("\n".join(lines).rstrip(". "), gold.rstrip(". "))

    def answer_key(self, prediction: str) -> str:
        """The first line of the continuation, without a final full stop; of several lines too, since how many the
        answer has is not known where samples vote."""
        lines = prediction.strip().splitlines() or [""]
        return lines[0].rstrip(". ")

    def examples(self, split: Split, count: int | None = None) -> Sequence[Example]:
        check_split(split)
        rows = self._split(split)
        return LazyExamples(len(rows) if count is None else min(count, len(rows)), lambda i: rows[i])

    def _split(self, split: Split) -> list[Example]:
        own = {"train": "", "validation": self.validation_path, "test": self.test_path}
        if own[split]:
            return self._read(own[split])
        if not self.path:
            raise UserError(f"config.task.path is empty: expected a JSONL file for the {split} split")
        rows = self._read(self.path)
        held = max(1, round(self.holdout * len(rows)))
        parts = [name for name in ("validation", "test") if not own[name]]
        if len(rows) <= held * len(parts):
            raise UserError(f"{self.path}: {len(rows)} rows are too few to set {held} aside for {' and '.join(parts)}")
        order = np.random.default_rng(self.seed).permutation(len(rows))
        begin = held * parts.index(split) if split in parts else held * len(parts)
        stop = begin + held if split in parts else len(rows)
        return [rows[int(i)] for i in order[begin:stop]]

    def _read(self, name: str) -> list[Example]:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(
                f"config.task.path: no file {path}: expected a JSONL file with question, answer and context"
            )
        if path not in self._files:
            self._files[path] = [self.parse(row, where) for row, where in read_jsonl(path)]
        if not self._files[path]:
            raise UserError(f"{path}: no rows: expected one JSON object a line")
        return self._files[path]

    @cached_property
    def _files(self) -> dict[Path, list[Example]]:
        return {}

    def parse(self, row: dict[str, Any], where: str) -> Example:
        """One row as an Example. Raises UserError that says where and what was expected."""
        question, answer = text_field(row, "question", where), text_field(row, "answer", where)
        if ("context" in row) == ("examples" in row):
            raise UserError(f"{where}: expected either 'context' or 'examples'")
        context = self._context(row["context"], where) if "context" in row else self._shots(row["examples"], where)
        if not context:
            raise UserError(f"{where}: empty context: expected at least one segment with text in it")
        for key in ("instruction", "group"):
            if not isinstance(row.get(key, ""), str):
                raise UserError(f"{where}: expected {key!r} to be text")
        support = row.get("support")
        if support is not None:
            valid = isinstance(support, list) and all(type(s) is int and 0 <= s < len(context) for s in support)
            if not valid:
                raise UserError(f"{where}: expected 'support' to be a list of segment numbers below {len(context)}")
        forced = row.get("forced", [])
        if not isinstance(forced, list) or not all(isinstance(text, str) and text for text in forced):
            raise UserError(f"{where}: expected 'forced' to be a list of texts")
        spans = [
            (number, found.start(), found.end())
            for number, segment in enumerate(context)
            for text in forced
            for found in re.finditer(re.escape(text), segment)
        ]
        return Example(
            instruction=row.get("instruction", ""),
            context=context,
            question=self.ask(question)[1],
            answer=f" {answer.strip()}" + (self._end if "examples" in row else "\n"),
            support=None if support is None else tuple(support),
            group=row.get("group", ""),
            forced=tuple(spans),
            uid=where,
        )

    @property
    def _end(self) -> str:
        """What follows an answer in the examples: a blank line is another token than a line's end."""
        return self.example_format.partition("{answer}")[2]

    @staticmethod
    def _context(value: Any, where: str) -> tuple[str, ...]:
        if isinstance(value, str):
            value = list(split_segments(value.replace("\r\n", "\n").lstrip("\n")))
        if not isinstance(value, list) or not all(isinstance(segment, str) and segment.strip() for segment in value):
            raise UserError(f"{where}: expected 'context' to be text or a list of texts that are not empty")
        return tuple(_separated(segment) for segment in value)

    def _shots(self, value: Any, where: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected 'examples' to be a list")
        shots = []
        for number, entry in enumerate(value):
            if isinstance(entry, str) and entry.strip():
                shots.append(entry.rstrip() + "\n\n")
            elif isinstance(entry, dict):
                parts = {
                    k: text_field(entry, k, f"{where}: examples[{number}]").strip() for k in ("question", "answer")
                }
                shots.append(self.example_format.format(**parts))
            else:
                raise UserError(f"{where}: examples[{number}]: expected text or an object with question and answer")
        return tuple(shots)
