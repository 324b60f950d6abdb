"""The tables and the figure of experiments/streaming.py, from its cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cell_lines import Cell

SPAN = 1024
"""Tokens that one measurement of seconds and of NLL is of."""
STARTS = (0, 4096, 8192, 16384)
"""Where the columns of perplexity begin, in tokens; each ends where the next begins, the last with the text."""


ALWAYS = ("policy", "sinks", "positions", "size", "dtype", "text", "decode", "length")
"""What a row says of every cell, the length in a column; of the identity's other keys those in which cells differ."""


def names_of(cells: Sequence[Cell]) -> list[str]:
    """What was varied, in words; of each cell."""
    identities = [cell["identity"] for cell in cells]
    keys = [key for key in dict.fromkeys(key for i in identities for key in i) if key not in ALWAYS]
    varied = [key for key in keys if len({json.dumps(i.get(key)) for i in identities}) > 1]
    texts = {i["text"] for i in identities}
    alike = len({Path(text).name for text in texts}) < len(texts)
    names = []
    for i in identities:
        text = f", {i['text'] if alike else Path(i['text']).name}" if i["text"] else ""
        work = ", decoded" if i.get("decode") else ""
        base = f"{i['policy']}, {i['sinks']} sinks, {i['positions']} positions, {i['size']} entries, {i['dtype']}"
        names.append(base + text + work + "".join(f", {key} {i.get(key)}" for key in varied))
    return names


def rows_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row a cell. Seconds are medians over spans of `SPAN` tokens, of the text's first quarter and of its last."""
    rows = []
    named = zip(names_of(cells), cells, strict=True)
    for name, cell in sorted(named, key=lambda pair: (pair[0], pair[1]["identity"]["length"])):
        quarter = max(1, len(cell["cpu"]) // 4)
        row: dict[str, Any] = {"cache": name, "tokens": cell["identity"]["length"]}
        row |= {key: _mb(cell[key]) for key in ("resident_peak", "resident_before", "process_peak")}
        row["program_mb"] = _mb(cell["program"]["temp_size_in_bytes"])
        for kind in ("seconds", "cpu"):
            row |= {
                f"{kind}_first": float(np.median(cell[kind][:quarter])),
                f"{kind}_last": float(np.median(cell[kind][-quarter:])),
            }
        for start, end in zip(STARTS, (*STARTS[1:], 1 << 40)):
            part = cell["nll"][start // SPAN : end // SPAN]
            row[f"ppl_{start}"] = float(np.exp(np.mean(part))) if part else None
        rows.append(row)
    return rows


def _mb(value: int | None) -> float | None:
    return None if value is None else value / 1e6


def flatness(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For each cache that was measured at several lengths: most over least peak memory, and last over first seconds."""
    lines = []
    for cache in dict.fromkeys(row["cache"] for row in rows):
        own = [row for row in rows if row["cache"] == cache]
        peaks = [row["resident_peak"] for row in own if row["resident_peak"] is not None]
        if len(own) > 1 and peaks:
            longest = own[-1]
            lines.append(
                f"{cache}: peak resident memory from {own[0]['tokens']:,} to {longest['tokens']:,} tokens within "
                f"{100 * (max(peaks) / min(peaks) - 1):.1f} %; CPU seconds a token in the last quarter of the longest "
                f"text {longest['cpu_last'] / longest['cpu_first']:.2f} times those in its first."
            )
    return lines


HEADER = (
    "cache | tokens | peak MB | MB after the first chunk | program's own MB | s per 1,024 tokens, first / last quarter "
    "| CPU s, first / last quarter | perplexity from 0 | from 4,096 | from 8,192 | from 16,384"
)


def write_report(cells: Sequence[Cell], output: Path) -> str:
    """Writes streaming.md, .json and .png; returns the Markdown."""
    rows = rows_of(cells)
    lines = [f"| {HEADER} |", "|---" * (HEADER.count("|") + 1) + "|"]
    for row in rows:
        values = [row["cache"], f"{row['tokens']:,}"]
        values += [_shown(row[key], ".0f") for key in ("resident_peak", "resident_before", "program_mb")]
        values += [f"{row[f'{kind}_first']:.2f} / {row[f'{kind}_last']:.2f}" for kind in ("seconds", "cpu")]
        values += [_shown(row[f"ppl_{start}"], ".2f") for start in STARTS]
        lines.append(f"| {' | '.join(values)} |")
    text = "\n".join([*lines, "", *flatness(rows)]) + "\n"
    (output / "streaming.md").write_text(text, encoding="utf-8")
    (output / "streaming.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if rows:
        _figure(cells, rows, output / "streaming.png")
    return text


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _figure(cells: Sequence[Cell], rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    named = list(zip(names_of(cells), cells, strict=True))
    fig = Figure(figsize=(14, 3.8), layout="constrained")
    memory, cost, perplexity = fig.subplots(1, 3)
    for number, cache in enumerate(dict.fromkeys(row["cache"] for row in rows)):
        style = {"color": f"C{number}", "label": cache}
        own = [row for row in rows if row["cache"] == cache]
        memory.plot([row["tokens"] for row in own], [row["resident_peak"] for row in own], marker="o", **style)
        longest = max((cell for name, cell in named if name == cache), key=lambda c: c["identity"]["length"])
        read = SPAN * (1 + np.arange(len(longest["cpu"])))
        cost.plot(read, longest["cpu"], **style)
        if not longest["nll"]:
            continue
        smooth = np.convolve(longest["nll"], np.ones(min(4, len(read))) / min(4, len(read)), "valid")
        perplexity.plot(read[-len(smooth) :], np.exp(smooth), **style)
    perplexity.axvline(cells[0]["limit"], color="#999999", linestyle=":")
    for axis, title in (
        (memory, "peak resident memory, MB"),
        (cost, "CPU seconds per 1,024 tokens"),
        (perplexity, "perplexity, mean of 4,096 tokens"),
    ):
        axis.set_xlabel("tokens read or decoded")
        axis.set_ylabel(title)
        axis.grid(alpha=0.25)
    memory.set_ylim(0, 1.1 * max((row["resident_peak"] or 0 for row in rows), default=0) or 1)
    for axis in (cost, perplexity):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
    fig.legend(*memory.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=8)
    FigureCanvasAgg(fig)
    fig.savefig(path, dpi=140)
