"""The table and the figure of experiments/dynamic_pruning.py, from its cells."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from experiments.cell_lines import Cell, newest
from experiments.table_files import tabular
from rcp.evaluate.tables import Grid, bootstrap_means, interval, markdown_lines

NAME = "dynamic_pruning"
POINT = ("method", "weights", "size", "shift", "eviction")
HEAD = ("# Perplexity against the share of context dropped", "")
LEGEND = (
    "dropped: the mean share of pairs of a token and an earlier one in which the earlier one was gone, over layers and "
    "heads. above full: NLL less that of the same weights with nothing dropped, nats a token, with its 95 % bootstrap "
    "interval over windows, paired. keep: entries that a head keeps, or what is added to the gates' bias."
)


@dataclass(frozen=True)
class Line:
    """One point of a curve; `low` and `high` bound the difference."""

    method: str
    weights: str
    keep: str
    dropped: float
    perplexity: float
    nll: float
    difference: float
    low: float
    high: float
    windows: int
    setting: str


def setting(cell: Cell) -> str:
    """Whose points make one table: all that is the same for every point of a run of the experiment."""
    return json.dumps({key: value for key, value in cell["identity"].items() if key not in POINT}, sort_keys=True)


def lines_of(cells: Sequence[Cell], resamples: int) -> list[Line]:
    """In the order measured, a method's points by what they drop. Cells without their full reading are left out."""
    found = []
    for cell in cells:
        i = cell["identity"]
        full = i | {"method": "full", "size": 0, "shift": 0.0, "eviction": None}
        whole = next((other for other in cells if other["identity"] == full), None)
        if whole is None:
            continue
        nll, dropped = np.asarray(cell["nll"]), float(np.mean(cell["dropped"]))
        above = nll - np.asarray(whole["nll"])
        bounds = (float(above.mean()), *interval(bootstrap_means(above[None], resamples, [0])))
        keep = "all" if i["method"] == "full" else str(i["size"]) if i["size"] else f"{i['shift']:+g}"
        mean = float(nll.mean())
        values = (dropped, float(np.exp(mean)), mean, *bounds, len(nll))
        found.append(Line(i["method"], i["weights"], keep, *values, setting(cell)))
    names = list(dict.fromkeys((line.weights, line.method) for line in found))
    return sorted(found, key=lambda line: (names.index((line.weights, line.method)), line.dropped))


def grid_of(lines: Sequence[Line], title: str) -> Grid:
    header = ("method", "weights", "keep", "dropped, %", "perplexity", "above full")
    rows = tuple(
        (
            line.method,
            line.weights,
            line.keep,
            f"{100 * line.dropped:.1f}",
            f"{line.perplexity:.3f}",
            "" if line.method == "full" else f"{line.difference:+.4f} [{line.low:+.4f}, {line.high:+.4f}]",
        )
        for line in lines
    )
    return Grid(title, header, rows)


def write_report(folder: Path, cells: Sequence[Cell], resamples: int) -> str:
    """Writes NAME.md, .csv, .tex and .png into the folder; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    tables: list[Grid] = []
    cells = newest(cells, "eviction")  # a run that was trained anew has cells of its own
    for name in dict.fromkeys(map(setting, cells)):
        own, i = lines_of([cell for cell in cells if setting(cell) == name], resamples), json.loads(name)
        title = f"{i['windows']} windows of {i['tokens']} tokens, chunks of {i['chunk']}, {i['dtype']}"
        tables.append(grid_of(own, f"{title}; a run of {i['step']} steps ({i['run']})"))
        lines += own
    body = [line for table in tables for line in markdown_lines(table, "dynamic")]
    page = "\n".join((*HEAD, *body, LEGEND, "", f"Written by `rcp tables {NAME}`.", ""))
    (folder / f"{NAME}.md").write_text(page, encoding="utf-8")
    columns = "\n".join(line for table in tables for line in tabular(table, "dynamic"))
    (folder / f"{NAME}.tex").write_text(columns, encoding="utf-8")
    with (folder / f"{NAME}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)
    if lines:
        figure(folder / f"{NAME}.png", lines)
    return page


def figure(path: Path, lines: Sequence[Line]) -> None:
    """NLL above that of the same weights over the share dropped, a panel a setting, a curve a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(line.setting for line in lines))
    fig = Figure(figsize=(7.2 * len(settings), 4.6), layout="constrained")
    for axis, name in zip(fig.subplots(1, len(settings), squeeze=False)[0], settings):
        drawn = [line for line in lines if line.setting == name and line.method != "full"]
        for weights, method in dict.fromkeys((line.weights, line.method) for line in drawn):
            own = [line for line in drawn if (line.weights, line.method) == (weights, method)]
            dropped, above = [100 * line.dropped for line in own], [line.difference for line in own]
            style = {"linestyle": "--" if weights == "tuned" else "-", "marker": "o"}
            label = method if weights == "published" or method == "dynamic" else f"{method}, {weights}"
            axis.plot(dropped, above, label=label, linewidth=2.4 if method in ("dynamic", "ours") else 1.2, **style)
        axis.axhline(0, color="0.7", linewidth=1)
        axis.set_xlabel("dropped, % of the pairs of a token and an earlier one")
        axis.grid(alpha=0.25)
    fig.axes[0].set_ylabel("NLL above nothing dropped, nats a token")
    fig.axes[0].legend(frameon=False, fontsize=8)
    FigureCanvasAgg(fig)
    fig.savefig(path, dpi=140)
