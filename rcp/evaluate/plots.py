"""The picture of a report: each metric against the keep rate, one line a method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rcp.evaluate.results import UNSWEPT
from rcp.evaluate.tables import METRICS, Row, groups_of

COLOURS = {
    "ours": "#c0392b",
    "oracle": "#2c3e50",
    "alone": "#566573",
    "greedy": "#17202a",
    "bm25": "#2980b9",
    "embedding": "#5dade2",
    "mmr": "#1f618d",
    "contrast": "#d2527f",
    "llmlingua": "#7d6608",
    "selective": "#bb8fce",
    "perplexity": "#8e44ad",
    "random": "#7f8c8d",
    "first": "#16a085",
    "last": "#d68910",
    "shorter": "#a04000",
    "full": "#000000",
    "none": "#999999",
    "ours+ada": "#e67e22",
    "ours+global": "#f1948a",
    "sinks_window": "#d68910",
    "h2o": "#16a085",
    "tova": "#7d6608",
    "snapkv": "#2980b9",
    "snapkv+ada": "#1f618d",
    "pyramidkv": "#5dade2",
    "expected_attention": "#8e44ad",
    "expected_attention+ada": "#bb8fce",
    "keydiff": "#d2527f",
    "kvzip": "#27ae60",
    "kvzip+uniform": "#82e0aa",
}
LABELS = {"em": "exact match", "nll": "answer NLL (nats a token)"}
MARKERS = {
    "ours": "o",
    "oracle": "D",
    "alone": "d",
    "greedy": "H",
    "bm25": "s",
    "embedding": "p",
    "mmr": "h",
    "contrast": "P",
    "llmlingua": "X",
    "selective": "*",
    "perplexity": "v",
    "random": "x",
    "first": "<",
    "last": ">",
    "shorter": "^",
    "ours+ada": "o",
    "ours+global": "o",
    "sinks_window": ">",
    "h2o": "<",
    "tova": "v",
    "snapkv": "s",
    "snapkv+ada": "h",
    "pyramidkv": "p",
    "expected_attention": "*",
    "expected_attention+ada": "P",
    "keydiff": "X",
    "kvzip": "d",
    "kvzip+uniform": "H",
}


def figure(entries: Sequence[Row]) -> Any:
    """A matplotlib figure: a column a metric, a row a group. Methods without a rate are horizontal lines; a pruner that
    decides itself how much it keeps is a point at what it kept.

    Bars are the 95 % intervals; points are moved sideways a little, so that they do not hide one another.
    """
    from matplotlib.figure import Figure

    groups = groups_of(entries)
    fig = Figure(figsize=(10, 3.2 * len(groups) + 0.6), layout="constrained")
    axes = fig.subplots(len(groups), len(METRICS), squeeze=False)
    for line, group in enumerate(groups):
        for column, metric in enumerate(METRICS):
            axis = axes[line][column]
            chosen = [row for row in entries if row.group == group and row.metric == metric]
            _draw(axis, chosen)
            if chosen and all(np.isnan(row.value) for row in chosen):
                axis.text(0.5, 0.5, "not available", transform=axis.transAxes, ha="center")
            if metric == "em":  # shares: 0 stands near the bottom, also where nothing is above it
                axis.set_ylim(-0.03, max(axis.get_ylim()[1], 0.2))
            axis.set_title(f"{group} (n = {chosen[0].n})" if chosen else group, fontsize=10, loc="left")
            axis.set_ylabel(LABELS[metric])
            axis.set_xlabel("keep rate (fraction of the context's tokens)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return fig


def _draw(axis: Any, entries: Sequence[Row]) -> None:
    methods = list(dict.fromkeys(row.method for row in entries))
    points = [method for method in methods if method not in UNSWEPT]
    rates = sorted({row.keep_rate_asked for row in entries if row.swept})
    gap = min((b - a for a, b in pairwise(rates)), default=0.25)
    for method in methods:
        mine = sorted((row for row in entries if row.method == method), key=lambda row: row.keep_rate_asked)
        colour = COLOURS.get(method, "#444444")
        if method not in points:
            axis.axhline(
                mine[0].value, color=colour, linestyle="--" if method == "full" else ":", linewidth=1.3, label=method
            )
            axis.axhspan(mine[0].ci_low, mine[0].ci_high, color=colour, alpha=0.06, linewidth=0)
            continue
        shift = 0.03 * gap * (points.index(method) - (len(points) - 1) / 2) if mine[0].swept else 0.0
        low = [row.value - row.ci_low for row in mine]
        high = [row.ci_high - row.value for row in mine]
        axis.errorbar(
            [(row.keep_rate_asked if row.swept else row.keep_rate_got) + shift for row in mine],
            [row.value for row in mine],
            yerr=[[max(x, 0) for x in low], [max(x, 0) for x in high]],
            color=colour,
            marker=MARKERS.get(method, "."),
            markersize=5,
            linewidth=2.4 if method == "ours" else 1.2,
            capsize=2,
            zorder=3 if method == "ours" else 2,
            label=method,
        )
    axis.grid(alpha=0.25)
    if rates:
        axis.set_xticks(rates)


def write(path: Path, entries: Sequence[Row]) -> None:
    """Writes the figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fig = figure(entries)
    FigureCanvasAgg(fig)
    fig.savefig(path, dpi=140)
