"""What a table of eviction policies says: what may be claimed on, means over tasks, whether ours is ahead, costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import groupby
from typing import Any

import numpy as np

from experiments.grid import Table
from experiments.measure import Column, Part, Row
from experiments.table_lines import Line, lines_of
from rcp.evaluate.tables import Grid, markdown_lines

LEAST = 0.5
"""Exact match that the whole cache must reach on a task for anything to be claimed on it."""
NOT_RIVALS = ("full", "oracle")
MEAN = "mean"


def full_accuracy(part: Part) -> float | None:
    """Exact match with the whole cache."""
    found = [column for row in part.rows if row.method.name == "full" for column in row.columns.values()]
    return float(found[0].em.mean()) if found and part.setting.exact else None


def claimed(part: Part) -> bool:
    return (full_accuracy(part) or 0.0) >= LEAST


def judged(table: Table, parts: Sequence[Part]) -> tuple[Table, list[Part]]:
    """The table with the accuracies of the whole cache in its text, and the parts: marked, and their means added."""
    said, marked = [], []
    for part in parts:
        accuracy = full_accuracy(part)
        if accuracy is not None:
            said.append(f"{part.setting.title} {accuracy:.3f}{'' if claimed(part) else ' (not claimed on)'}")
            print(f"whole cache, exact match: {said[-1]}")
            if not claimed(part):
                title = f"{part.setting.title} (whole cache {accuracy:.2f}: not claimed on)"
                part = replace(part, setting=replace(part.setting, title=title))
        marked.append(part)
    about = f"{table.about} Exact match with the whole cache: {'; '.join(said) or 'not measured yet'}."
    about += f" Nothing is claimed on tasks where it is below {LEAST:g}."
    return replace(table, about=about), [*marked, *means(marked)]


def means(parts: Sequence[Part]) -> Iterator[Part]:
    """For each reader and length, the mean over the tasks that may be claimed on, example by example."""

    def shared(part: Part) -> tuple[str, float]:
        return part.setting.reader, part.setting.at

    for _, group in groupby(sorted(parts, key=shared), key=shared):
        own = [part for part in group if claimed(part)]
        if len(own) > 1:
            yield _mean(own)


def _mean(parts: Sequence[Part]) -> Part:
    first, tasks = parts[0].setting, ", ".join(part.setting.title.partition(",")[0] for part in parts)
    rows = []
    for number, row in enumerate(parts[0].rows):
        same = [part.rows[number] for part in parts]
        keys = [key for key in row.columns if all(key in other.columns for other in same)]
        columns = {key: _mean_column([other.columns[key] for other in same]) for key in keys}
        rows.append(Row(row.method, {k: c for k, c in columns.items() if c is not None}, row.seeds))
    rest = first.title.partition(",")[2]
    setting = replace(first, name=f"{MEAN}_{first.at:g}", title=f"{MEAN} of {tasks},{rest}", task={"name": MEAN})
    return Part(setting, tuple(rows), tuple(dict.fromkeys(device for part in parts for device in part.devices)))


def _mean_column(columns: Sequence[Column]) -> Column | None:
    """The mean of each number of the examples of one number; None where the tasks have not the same numbers."""
    if not all(np.array_equal(column.index, columns[0].index) for column in columns):
        return None
    values: dict[str, Any] = {}
    for field in fields(Column):
        own = [getattr(column, field.name) for column in columns]
        values[field.name] = None if any(value is None for value in own) else np.mean(own, axis=0)
    return Column(**values)


def verdicts(table: Table, parts: Sequence[Part], resamples: int) -> str:
    """At each rate: the best comparison, ours, and whether their intervals are apart. Of parts that are claimed on."""
    lines = []
    for part in parts:
        if not claimed(part):
            continue
        found = [line for line in lines_of(table, part, resamples) if line.metric == "em" and line.value is not None]
        for budget in dict.fromkeys(line.budget for line in found):
            here = [line for line in found if line.budget == budget]
            ours = next((line for line in here if line.method == table.ours), None)
            rivals = [line for line in here if line.method not in NOT_RIVALS and not line.method.startswith(table.ours)]
            if rivals:
                best = max(rivals, key=lambda line: line.value or 0.0)
                cells = (part.setting.title, budget, f"{best.method} {_value(best)}")
                lines.append((*cells, _value(ours) if ours else "", _verdict(ours, rivals) if ours else "not measured"))
    header = ("setting", "keep", "best comparison", table.ours, "verdict")
    title = f"{table.ours} against the comparisons, exact match"
    return "\n".join(markdown_lines(Grid(title, header, tuple(lines)), table.ours)) + "\n" if lines else ""


def _verdict(ours: Line, rivals: Sequence[Line]) -> str:
    """Ahead of all, with or without intervals apart, or not; behind whom by a paired interval below 0."""
    if any(line.difference_n < max(line.n, ours.n) for line in rivals):
        return "not comparable: rows of other examples"
    behind = [line.method for line in rivals if (line.difference_high or 0.0) < 0]
    if behind:
        return f"behind {', '.join(behind)}"
    low, value = ours.low or 0.0, ours.value or 0.0
    if all(low > (line.high or 0.0) for line in rivals):
        return "ahead of all, intervals apart"
    if all(value > (line.value or 0.0) for line in rivals):
        return "ahead of all, intervals overlap"
    return "not behind any (paired)"


def _value(line: Line) -> str:
    return f"{line.value:.3f} [{line.low:.3f}, {line.high:.3f}]"


def costs(table: Table, parts: Sequence[Part]) -> str:
    """Entries, seconds and memory of every row; of each setting that was measured."""
    out = []
    for part in parts:
        found = [line for line in lines_of(table, part, 1) if line.metric == "nll" and line.value is not None]
        by: dict[str, dict[str, Line]] = {}
        for line in found:
            by.setdefault(line.method, {})[line.budget] = line
        budgets = list(dict.fromkeys(line.budget for line in found))
        lines = [(method, *(_cost(own[b]) if b in own else "" for b in budgets)) for method, own in by.items()]
        if lines:
            entries = max(line.context_tokens or 0.0 for line in found)
            title = f"entries asked / kept of {entries:.0f}, prune + read seconds, MB: {part.setting.heading}"
            out += markdown_lines(Grid(title, ("method", *(f"@ {b}" for b in budgets)), tuple(lines)), table.ours)
    return "\n".join([*out, LEGEND, ""]) if out else ""


def _cost(line: Line) -> str:
    asked = "" if line.entries_asked is None else f"{line.entries_asked:.0f} / "
    memory = "" if line.cache_bytes is None else f", {line.cache_bytes / 1e6:.2f}"
    return f"{asked}{line.tokens_kept:.0f}, {line.prune_seconds:.3f} + {line.model_seconds:.3f}{memory}"


LEGEND = (
    "Means a context. prune: scoring, selecting, gathering; kvzip's with its second reading. read: the context, once "
    "for all rows that are measured together and with what any of them needs gathered, then question and answer; rows "
    "measured at another time compare roughly. MB: the arrays that hold what is kept; their capacity is an eighth, a "
    "quarter, a half, three quarters or all of the context."
)
