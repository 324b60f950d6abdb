"""The picture of a measured table: answer NLL, and exact match where it is shown, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.grid import Table
from experiments.measure import Part
from experiments.table_lines import Line, budgets_of, metrics_of, order, problems
from rcp.evaluate.plots import COLOURS, MARKERS

LABELS = {"nll": "answer NLL, nats a token", "em": "exact match"}


def write_figure(path: Path, table: Table, parts: Sequence[Part], lines: Sequence[Sequence[Line]]) -> None:
    """Writes the PNG: one column a metric; one row a measured setting, or one alone where settings are the x axis.

    Rows of fewer problems than the others are left out, as they would stand beside what they cannot be compared with.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(metric for part in parts for metric in metrics_of(part.setting)))
    together = table.x == "setting"
    measured = [
        (part, [line for line in found if line.n == problems(found)]) for part, found in zip(parts, lines, strict=True)
    ]
    known = [pair for pair in measured if any(line.value is not None for line in pair[1])]
    panels = [measured] if together else [[pair] for pair in known or measured]
    fig = Figure(figsize=(6.2 * len(metrics) + 1.8, 3.8 * len(panels) + 0.4), layout="constrained")
    axes = fig.subplots(len(panels), len(metrics), squeeze=False)
    for row, pairs in enumerate(panels):
        for column, metric in enumerate(metrics):
            axis = axes[row][column]
            chosen = [(part, [line for line in found if line.metric == metric]) for part, found in pairs]
            (_bars if table.x == "method" else _curves)(axis, table, chosen)
            axis.set_title("" if together else pairs[0][0].setting.title, fontsize=10, loc="left")
            axis.grid(alpha=0.25)
            axis.set_xlabel(LABELS[metric] if table.x == "method" else table.x_label)
            axis.set_ylabel("" if table.x == "method" else LABELS[metric])
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}
    if handles:
        fig.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=8)
    FigureCanvasAgg(fig)
    fig.savefig(path, dpi=140)


def _curves(axis: Any, table: Table, parts: Sequence[tuple[Part, Sequence[Line]]]) -> None:
    """A line a method, over tokens kept or settings; over settings at the smallest budget alone."""
    for method in order([line for _, found in parts for line in found]):
        points = []
        for part, found in parts:
            mine = [line for line in found if line.method == method and line.value is not None]
            if table.x == "setting":
                mine = [line for line in mine if line.budget == budgets_of(part.setting)[-1]]
            for line in mine:
                points.append((part.setting.at if table.x == "setting" else line.tokens_kept, line))
        points = list({x: (x, line) for x, line in points}.values())  # full and none stand at every budget, once here
        if points:
            points.sort(key=lambda point: point[0])
            _draw(axis, [x for x, _ in points], [line for _, line in points], method, table)
    axis.set_xscale("log", base=2) if table.x == "setting" else None


def _draw(axis: Any, x: Sequence[float], lines: Sequence[Line], method: str, table: Table) -> None:
    bold = method == table.ours
    others = [row.name for row in table.methods if row.name not in COLOURS]  # dashed; of one colour in all panels
    axis.errorbar(
        x,
        [line.value for line in lines],
        yerr=_errors(lines),
        color=COLOURS[method] if method in COLOURS else f"C{others.index(method)}",
        linestyle="--" if method in others else "-",
        marker=MARKERS.get(method, "."),
        markersize=5,
        linewidth=2.4 if bold else 1.1,
        capsize=2,
        zorder=3 if bold else 2,
        label=method,
    )


def _bars(axis: Any, table: Table, parts: Sequence[tuple[Part, Sequence[Line]]]) -> None:
    """A horizontal interval a row, a colour a budget."""
    _, lines = parts[0]
    methods = [method for method in order(lines) if any(x.method == method and x.value is not None for x in lines)]
    for number, budget in enumerate(dict.fromkeys(line.budget for line in lines if line.budget)):
        mine = {line.method: line for line in lines if line.budget == budget and line.value is not None}
        y = [methods.index(method) + 0.15 * number for method in mine]
        errors = _errors(list(mine.values()))
        values = [line.value for line in mine.values()]
        axis.errorbar(values, y, xerr=errors, fmt="o", capsize=2, color=f"C{number}", label=f"@ {budget}")
    axis.set_yticks(range(len(methods)), methods)
    axis.invert_yaxis()


def _errors(lines: Sequence[Line]) -> list[list[float]]:
    known = [(line.value or 0.0, line.low or 0.0, line.high or 0.0) for line in lines]
    return [[max(value - low, 0.0) for value, low, _ in known], [max(high - value, 0.0) for value, _, high in known]]
