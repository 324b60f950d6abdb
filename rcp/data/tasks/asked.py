"""Every question that a task could ask about a context it has made.

A context that is read once and pruned without a question should serve all of them. What a context tells is read back
from its text, in the words in which the task tells it, so that one context gives several questions with their answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from rcp.data.tasks.base import Task
from rcp.data.tasks.documents import PROPERTIES, Documents
from rcp.data.tasks.needle import Needle
from rcp.data.tasks.tracking import Tracking
from rcp.types import Example

QuestionAnswer = tuple[str, str]
"""Question and answer, as in `Example`."""

_NEEDLE = re.compile(r" (?:The magic number|One of the magic numbers) of (the \w+ \w+) is (\d+)\.")
_VARIABLE = re.compile(r" VAR (\w+) = (?:VAR )?(\w+)\.")
_PERSON = re.compile(r"This is about ([^.]+)\.")


def questions_of(task: Task, example: Example, most: int, rng: np.random.Generator) -> list[QuestionAnswer]:
    """At most `most` different questions about the example's context, its own first, the others drawn by `rng`.

    Needles: every thing, where one is asked for at a time. Tracking: every variable, where values are asked for.
    Documents: all that is told of anybody, where one document is needed. Other tasks ask for one thing alone.
    """
    own = (example.question, example.answer)
    others = list(dict.fromkeys(asked for asked in _all(task, example) if asked[0] != own[0]))
    drawn = rng.permutation(len(others))[: max(most - 1, 0)].tolist()
    return [own, *(others[n] for n in drawn)]


def _all(task: Task, example: Example) -> Iterator[QuestionAnswer]:
    text = "".join(example.context)
    if isinstance(task, Needle) and task.queries == 1:
        found: dict[str, list[str]] = {}
        for thing, value in _NEEDLE.findall(text):
            found.setdefault(thing, []).append(value)
        yield from (task.asked([thing], values) for thing, values in found.items())
    elif isinstance(task, Tracking) and task.asks == "value":
        sources = dict(_VARIABLE.findall(text))
        for name in sources:
            value = name
            while value in sources:
                value = sources[value]
            yield task.asked([name], value)
    elif isinstance(task, Documents) and task.hops == (1,):
        for name in _PERSON.findall(text):
            for told in PROPERTIES:
                stem = told.told.format(who=name)
                if value := re.search(re.escape(stem) + r" ([^.]+)\.", text):
                    yield (
                        f"{task.ask(told.question.format(who=name))[1]} {stem[0].upper()}{stem[1:]}",
                        f" {value[1]}.",
                    )
