"""The tables and the figure of experiments/lossless.py, from its cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cell_lines import Cell, newest

COLUMNS = {
    "model": "model",
    "max_new": "most tokens",
    "dtype": "dtype",
    "batch": "batch",
    "policy": "drafts behind",
    "keep": "kept",
    "gamma": "gamma",
    "n": "prompts",
    "identical": "identical",
    "margin": "largest margin where not",
    "acceptance": "acceptance",
    "a_block": "tokens a verification",
    "greedy": "s greedy",
    "lossless": "s lossless",
    "pruning": "s pruning",
    "ratio": "ratio [least, most]",
    "cpu_ratio": "ratio of CPU s",
}
LEGEND = (
    "Seconds are means a prompt. s pruning: from the context as read to the pruned one that drafts; once a context, "
    "and neither in s lossless nor in the ratios."
)
KEYS = ("model", "dtype", "batch", "max_new", "policy", "keep", "gamma")
VARIED = ("model", "max_new")
"""Of the keys those that are shown only where rows differ in them."""


def summary(cells: Sequence[Cell], keys: Sequence[str] = KEYS) -> list[dict[str, Any]]:
    """A row for each value of the keys: counts and sums over the prompts; seconds are means a prompt.

    `ratio`: seconds of lossless over greedy decoding, the median over batches, with the least and the most. `pruning`
    is in neither.
    """
    rows = []
    for values in sorted({tuple(cell["identity"][key] for key in keys) for cell in cells}):
        own = [cell for cell in cells if tuple(cell["identity"][key] for key in keys) == values]
        count = sum(len(cell["identical"]) for cell in own)
        total = {name: sum(map(sum, (cell[name] for cell in own))) for name in ("drafted", "accepted", "blocks", "new")}
        seconds = {
            kind: {name: np.array([cell["seconds"][name][kind] for cell in own]) for name in ("greedy", "lossless")}
            for kind in ("wall", "cpu")
        }
        ratios = seconds["wall"]["lossless"] / seconds["wall"]["greedy"]
        rows.append(
            dict(zip(keys, values))
            | {
                "n": count,
                "identical": sum(map(sum, (cell["identical"] for cell in own))),
                "margin": max((abs(m) for cell in own for m in cell["margin"]), default=None),
                "acceptance": total["accepted"] / max(total["drafted"], 1),
                "a_block": (total["new"] - count) / max(total["blocks"], 1),
                "new": total["new"] / count,
                "kept": sum(cell["kept"] for cell in own) / sum(cell["entries"] for cell in own),
                "greedy": float(seconds["wall"]["greedy"].sum()) / count,
                "lossless": float(seconds["wall"]["lossless"].sum()) / count,
                "pruning": sum(cell["seconds"]["pruning"] for cell in own) / count,
                "ratio": [float(f(ratios)) for f in (np.median, np.min, np.max)],
                "cpu_ratio": float(np.median(seconds["cpu"]["lossless"] / seconds["cpu"]["greedy"])),
            }
        )
    return rows


def varied(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Those of `VARIED` in which rows differ."""
    return [key for key in VARIED if len({row[key] for row in rows}) > 1]


def lines(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table; of `VARIED` it has the columns in which rows differ."""
    columns = [name for name in columns if name not in VARIED or name in varied(rows)]

    def shown(name: str, value: Any) -> str:
        if value is None:
            return "-"
        if name == "ratio":
            return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    table = [[COLUMNS.get(name, name) for name in columns]]
    table += [[shown(name, row[name]) for name in columns] for row in rows]
    text = [f"| {' | '.join(line)} |" for line in table]
    return "\n".join([text[0], "|" + "---|" * len(columns), *text[1:]]) + "\n"


def write_report(cells: Sequence[Cell], output: Path) -> str:
    """Writes lossless.md, .json and .png; returns the Markdown."""
    most_last = sorted(cells, key=lambda cell: cell["identity"]["rows"])
    cells = newest(most_last, "eviction", "text", "rows")  # of each batch by its number, the newest of the most rows
    rows = summary(cells)
    by_task = summary(cells, ("task", "tokens", *KEYS))
    text = "## All prompts\n\n" + lines(rows, list(COLUMNS))
    columns = ["task", "tokens", *VARIED, "dtype", "batch", "policy", "keep", "gamma", "n", "new", "identical"]
    text += "\n## By task\n\n" + lines(by_task, [*columns, "acceptance", "a_block", "ratio", "cpu_ratio"])
    text += f"\n{LEGEND}\n"
    (output / "lossless.md").write_text(text, encoding="utf-8")
    (output / "lossless.json").write_text(json.dumps({"all": rows, "by_task": by_task}, indent=1), encoding="utf-8")
    if rows:
        _figure(rows, output / "lossless.png")
    return text


def _curve(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("dtype", "batch", "policy", "gamma", *VARIED))


def _figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = fig.subplots(1, 2)
    names = list(dict.fromkeys(map(_curve, rows)))
    for number, name in enumerate(names):
        own = [r for r in rows if _curve(r) == name]
        label = f"{name[2]}, gamma {name[3]}, {name[0]}, batch {name[1]}"
        label += "".join(f", {COLUMNS[key]} {own[0][key]}" for key in varied(rows))
        style = {"marker": "osDv^x*P"[number % 8], "label": label}
        left.plot([r["keep"] for r in own], [r["acceptance"] for r in own], **style)
        right.plot([r["keep"] for r in own], [r["ratio"][0] for r in own], **style)
    right.axhline(1.0, color="#999999", linestyle=":")
    for axis, title in ((left, "drafts accepted"), (right, "seconds over greedy decoding")):
        axis.set_xlabel("part of the context that the drafter keeps")
        axis.set_ylabel(title)
        axis.grid(alpha=0.25)
    left.set_ylim(0, 1)
    fig.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    FigureCanvasAgg(fig)
    fig.savefig(path, dpi=140)
