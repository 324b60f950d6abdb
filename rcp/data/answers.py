"""Reading the final answer of a worked solution, as CoT-Influx does (arXiv 2312.08901)."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def final_answer(text: str) -> str | None:
    """The first number after "The answer is", else the last number, as plain digits; None where there is no number.

    Only the first problem is looked at: a continuation that goes on to another "Q:" is cut there.
    """
    text = text.split("\nQ:")[0]
    _, mark, rest = text.partition("The answer is")
    found = _NUMBER.search(rest) if mark else None
    if found is None:
        every = _NUMBER.findall(text)
        return _plain(every[-1]) if every else None
    return _plain(found.group())


def check(prediction: str, gold: str) -> bool:
    """Whether the final answers of two texts are the same number (72, 72.0 and $72 are; 1,000 is 1000)."""
    a, b = final_answer(prediction), final_answer(gold)
    return a is not None and b is not None and abs(float(a) - float(b)) <= 1e-6 * max(1.0, abs(float(b)))


def _plain(number: str) -> str:
    return number.replace("$", "").replace(",", "")
