"""A user's text files as sentences, and their division between the splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from rcp.data.tasks.base import Split
from rcp.types import UserError

T = TypeVar("T")

LONGEST = 64
"""Words after which a sentence is cut: text without full stops (tables, code) is cut too."""
_WORD = re.compile(r"\s*\S{1,100}")
_END = re.compile(r"[.!?…][\"'”’)\]]*$")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def read_documents(path: str, key: str) -> list[tuple[str, str]]:
    """(path, text) of a text file, or of every *.txt file in a folder, by name. Errors name `key` of config.task.

    Raises:
      UserError: nothing there, no text in it, or no UTF-8 (names file and line).
    """
    found = Path(path).expanduser()
    files = sorted(found.glob("*.txt")) if found.is_dir() else [found]
    if not files or not files[0].is_file():
        raise UserError(f"config.task.{key}: no text in {found}: expected a text file, or a folder with *.txt files")
    return [(str(file), _read(file)) for file in files]


def _read(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{line}: expected UTF-8 text") from None
    if not text.strip():
        raise UserError(f"{file}:1: expected text, the file is empty")
    return text.replace("\r\n", "\n")


def sentences(text: str) -> list[str]:
    """The sentences, each with the white space before it: together they are the text, white space at its end apart.

    A sentence ends at a full stop, question or exclamation mark with white space behind it, at a blank line, and after
    `LONGEST` words.
    """
    out: list[str] = []
    words: list[str] = []
    for word in _WORD.findall(text):
        if words and (
            len(words) == LONGEST or _BLANK_LINE.search(word) or (_END.search(words[-1]) and word[0].isspace())
        ):
            out.append("".join(words))
            words = []
        words.append(word)
    return [*out, "".join(words)] if words else out


@lru_cache(maxsize=4)
def documents(path: str, key: str) -> list[list[str]]:
    """The sentences of each text; see `read_documents`."""
    return [sentences(text) for _, text in read_documents(path, key)]


def share(items: Sequence[T], split: Split, holdout: float) -> Sequence[T]:
    """The split's part of a text: its last `holdout` is for the test, as much before that for validation.

    Parts of one piece lie side by side, so that a passage of the test is not surrounded by training text.
    """
    held = max(1, round(holdout * len(items)))
    ends = {"train": (0, -2 * held), "validation": (-2 * held, -held), "test": (-held, len(items))}
    begin, stop = ends[split]
    return items[begin:stop]
