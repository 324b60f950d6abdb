"""Reading and comparing the final answers of worked solutions, as CoT-Influx does (arXiv 2312.08901).

Which quantity is the answer is decided here: the first after "The answer is", else the last. A quantity is a number
($1,000.50), a fraction (3/4, 1 1/2) or a piece of LaTeX (\\frac{3}{4}, $1\\frac{1}{2}$, \\(12\\ \\text{cm}\\)). Two
plain numbers are compared as numbers (72, 72.0 and $72 are equal; 1,000 is 1000; words behind a number, units and
per cent signs too, do not count). Where either answer is more than a plain number, the library math-verify decides.
"""

from __future__ import annotations

import logging
import re
import threading
from functools import cache
from typing import Any

_NUMBER = r"-?\$?(?:\d(?:,?\d)*(?:\.\d+)?|\.\d+)"
_FRACTION = r"\\[dt]?frac\{[^{}]*\}\{[^{}]*\}"
_QUANTITY = re.compile(
    rf"\$[^$\n]*\\[^$\n]*\$|\\\([^\n]*?\\\)|-?(?:\d+ ?)?{_FRACTION}|-?\d+ \d+/\d+|{_NUMBER}(?: ?/ ?{_NUMBER})*"
)
_PLAIN = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_MIXED = re.compile(r"(-?\d+) (\d+)/(\d+)")
_LONGEST = 80
_SAFE = re.compile(r"[\w\s.,/+\-*(){}\\$%:=]*")  # no powers and factorials: short texts with huge values
_LOCK = threading.Lock()


def final_answer(text: str) -> str | None:
    """The first quantity after "The answer is", else the last; None where there is none. Numbers come as plain digits.

    Only the first problem is looked at: a continuation that goes on to another "Q:" is cut there.
    """
    text = text.split("\nQ:")[0].replace("{,}", ",")
    _, mark, rest = text.partition("The answer is")
    found = _QUANTITY.search(rest) if mark else None
    if found is None:
        every = list(_QUANTITY.finditer(text))
        if not every:
            return None
        found = every[-1]
    number = found.group().replace("$", "").replace(",", "")
    return number if _PLAIN.fullmatch(number) else found.group().strip()


def check(prediction: str, gold: str) -> bool:
    """Whether the final answers of two texts are equal; see the module for who decides."""
    a, b = final_answer(prediction), final_answer(gold)
    if a is None or b is None:
        return False
    if a == b:
        return True
    if _PLAIN.fullmatch(a) and _PLAIN.fullmatch(b):
        return abs(float(a) - float(b)) <= 1e-6 * max(1.0, abs(float(b)))
    return _equal(_parsed(b), _parsed(a))


def answer_key(text: str) -> str | None:
    """The final answer in a form that equal answers share ("0.75" for 3/4 too); None where there is none."""
    answer = final_answer(text)
    if answer is None:
        return None
    if _PLAIN.fullmatch(answer):
        return f"{float(answer):.10g}"
    found = _parsed(answer)
    if not found:
        return answer
    try:
        return f"{float(found[0]):.10g}"
    except (TypeError, ValueError, OverflowError):
        return str(found[0])


@cache
def _library() -> Any:
    """math-verify, imported when first needed (it brings sympy, some seconds)."""
    import math_verify

    # It warns that its timeouts are off: they are signals, which threads cannot have. `_SAFE` stands for them.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


def _parsed(quantity: str) -> list[Any]:
    """What math-verify reads in a quantity, an expression of sympy first; nothing where it is not safe to evaluate."""
    if len(quantity) > _LONGEST or not _SAFE.fullmatch(quantity):
        return []
    quantity = _MIXED.sub(r"\1\\frac{\2}{\3}", quantity)
    if "\\" in quantity and not quantity.startswith(("$", "\\(")):
        quantity = f"${quantity}$"
    with _LOCK:  # the grammar's tables are shared
        return _library().parse(quantity, parsing_timeout=None)


def _equal(gold: list[Any], answer: list[Any]) -> bool:
    if not gold or not answer:
        return False
    with _LOCK:
        return bool(_library().verify(gold, answer, timeout_seconds=None))
