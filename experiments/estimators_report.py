"""The report of `experiments.estimators`: rows, one for each problem, seed and estimator, into Markdown, CSV, LaTeX and
a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

EXPLANATION = """\
All numbers but the milliseconds are relative to the gradient g of the estimator's own distribution.
bias: |mean estimate - g| / |g| with what chance adds to the squared distance taken off (0 where that leaves nothing);
after +-: the length that chance alone would give, from the estimates and from the reference. z: the excess of the
squared distance over chance, in (at most) its standard deviations: within +-3 or so, no bias was found. variance: trace
of the covariance of one estimate / |g|^2. cosine: of one estimate with g, mean; of mean: of the mean estimate with g.
Several seeds: means (bias: root of the mean square; z: sum / sqrt(seeds)). ms: the fastest of several calls, one
estimate each. A number after a name: its temperature, or the step of I-MLE.
"""
HEADERS = ("estimator", "of", "unbiased", "bias", "z", "variance", "cosine", "of mean", "ms")
SHORT = {"plackett-luce": "PL", "conditional-bernoulli": "CB"}
COLUMNS = ("tokens", "keep", "seed", "estimator", "distribution", "unbiased", "differentiates", "samples", "repeats")
VALUES = (
    "bias",
    "bias_squared",
    "bias_error",
    "bias_z",
    "variance",
    "cosine",
    "cosine_of_mean",
    "milliseconds",
    "reference_error",
)


def problems(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    """(tokens, keep) -> a row an estimator, its seeds put together."""
    result: dict[tuple[int, int], list[Row]] = {}
    for size in dict.fromkeys((row["tokens"], row["keep"]) for row in rows):
        of_size = [row for row in rows if (row["tokens"], row["keep"]) == size]
        names = dict.fromkeys(row["estimator"] for row in of_size)
        result[size] = [_joined([row for row in of_size if row["estimator"] == name]) for name in names]
    return result


def _joined(rows: Sequence[Row]) -> Row:
    count = len(rows)
    values = {name: sum(row[name] for row in rows) / count for name in VALUES}
    values["bias"] = math.sqrt(max(values["bias_squared"], 0.0))
    values["bias_error"] = math.sqrt(sum(row["bias_error"] ** 2 for row in rows) / count)
    values["bias_z"] = sum(row["bias_z"] for row in rows) / math.sqrt(count)
    return {**rows[0], **values, "seeds": count}


def title(rows: Sequence[Row]) -> str:
    first = rows[0]
    many = f"{first['seeds']} problems" if first["seeds"] > 1 else "1 problem"
    text = f"{first['keep']} of {first['tokens']} tokens, {first['samples']} draws an estimate, "
    text += f"{first['repeats']:,} estimates, {many}, "
    if first["exact"]:
        return text + "exact gradient by enumeration"
    errors = {SHORT[row["distribution"]]: row["reference_error"] for row in rows}
    return text + "gradient by brute force, its own error " + ", ".join(f"{e:.2%} ({d})" for d, e in errors.items())


def cells(row: Row) -> list[str]:
    return [
        row["estimator"],
        SHORT[row["distribution"]],
        "yes" if row["unbiased"] else "no",
        f"{row['bias']:.3f} +- {row['bias_error']:.3f}",
        f"{row['bias_z']:.1f}",
        f"{row['variance']:.3g}",
        f"{row['cosine']:.3f}",
        f"{row['cosine_of_mean']:.4f}",
        f"{row['milliseconds']:.2f}",
    ]


def console(rows: Sequence[Row]) -> str:
    parts = []
    for of_size in problems(rows).values():
        table = [list(HEADERS), *(cells(row) for row in of_size)]
        widths = [max(len(line[column]) for line in table) for column in range(len(HEADERS))]
        lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table]
        parts.append("\n".join([title(of_size), *lines]) + "\n")
    return "\n".join(parts)


def markdown(rows: Sequence[Row]) -> str:
    parts = ["# Gradient estimators against the exact gradient\n", EXPLANATION]
    for of_size in problems(rows).values():
        lines = [HEADERS, ("---",) * len(HEADERS), *(cells(row) for row in of_size)]
        parts.append(f"## {title(of_size)}\n")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def latex(rows: Sequence[Row]) -> str:
    def escaped(text: str) -> str:
        return text.replace("%", r"\%").replace("+-", r"$\pm$").replace("_", r"\_")

    lines = [rf"\begin{{tabular}}{{lll{'r' * (len(HEADERS) - 3)}}}", r"\hline"]
    lines += [" & ".join(HEADERS) + r" \\", r"\hline"]
    for of_size in problems(rows).values():
        lines.append(rf"\multicolumn{{{len(HEADERS)}}}{{l}}{{{escaped(title(of_size))}}} \\")
        lines += [" & ".join(map(escaped, cells(row))) + r" \\" for row in of_size]
        lines.append(r"\hline")
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def figure(rows: Sequence[Row]) -> Any:
    """Variance of one estimate against bias, a panel a problem; the settings of one estimator are joined by a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    found = problems(rows)
    fig = Figure(figsize=(5 * len(found) + 2.2, 4.6), layout="constrained")
    panels = fig.subplots(1, len(found), squeeze=False)[0]
    for axis, of_size in zip(panels, found.values(), strict=True):
        for number, name in enumerate(dict.fromkeys(row["name"] for row in of_size)):
            _draw(axis, [row for row in of_size if row["name"] == name], f"C{number}")
        axis.set(xscale="log", yscale="log", xlabel="relative bias", ylabel="variance of one estimate, relative")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(0.12)
        axis.set_title(f"{of_size[0]['keep']} of {of_size[0]['tokens']} tokens", fontsize=10, loc="left")
    handles, labels = panels[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    fig.supxlabel("hollow: no bias found, drawn at the length that chance gives; PL circles, CB squares", fontsize=9)
    return fig


def _draw(axis: Any, rows: Sequence[Row], colour: str) -> None:
    """The points of one estimator."""
    marker = {"PL": "o", "CB": "s"}[SHORT[rows[0]["distribution"]]]
    seen = [row["bias"] > 0 and row["bias_z"] > 3 for row in rows]
    x = [row["bias"] if visible else row["bias_error"] for row, visible in zip(rows, seen, strict=True)]
    axis.plot(x, [row["variance"] for row in rows], color=colour, linewidth=0.8)
    for place, row, visible in zip(x, rows, seen, strict=True):
        label = row["name"] if row is rows[0] else None
        fill = colour if visible else "none"
        axis.plot(place, row["variance"], marker, color=colour, markerfacecolor=fill, linestyle="none", label=label)
        setting = row["estimator"].removeprefix(row["name"]).strip()
        axis.annotate(setting, (place, row["variance"]), (4, 4), textcoords="offset points", fontsize=7)


def write_report(folder: Path, rows: Sequence[Row]) -> str:
    """Writes report.md, .csv, .tex and .png; returns the table for the console."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(rows), encoding="utf-8")
    (folder / "report.tex").write_text(latex(rows), encoding="utf-8")
    with (folder / "report.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS + VALUES)
        writer.writerows([row[name] for name in COLUMNS + VALUES] for row in rows)
    FigureCanvasAgg(figure(rows)).print_png(str(folder / "report.png"))
    return console(rows)
