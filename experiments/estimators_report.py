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
TASK_EXPLANATION = """\
A pruner trained by the estimate alone: reward 1 / (1 + NLL of the answer), the same scorer, examples and optimizer for
all. Exact match (teacher-forced) and NLL of the test examples at the best quarter of the segments, 95 % bootstrap
intervals over the examples; several seeds side by side. Last rewards: mean of the draws over the last tenth of the
steps (of relaxed masks where the estimator draws such). random, needed: nothing is trained, segments at random, and
those that the task says are needed first. Seconds a step: the median, the least of the seeds.
"""
TASK_HEADERS = ("estimator", "exact match", "NLL", "last rewards", "s a step")
TASK_COLUMNS = ("estimator", "seed", "config", "steps", "samples", "exact_match", "low", "high", "nll", "n", "seconds")
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
        parts.append(f"{title(of_size)}\n{_in_columns([HEADERS, *(cells(row) for row in of_size)])}\n")
    return "\n".join(parts)


def _in_columns(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table)


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


def write_report(folder: Path, rows: Sequence[Row], task: Sequence[Row]) -> str:
    """Writes report.md, .csv, .tex and .png, of the end task task.csv and task.png; returns the tables for the console.

    `task`: rows of `experiments.estimators_task`, or none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    folder.mkdir(parents=True, exist_ok=True)
    body = task_table(task)
    text = markdown(rows)
    if task:
        lines = [f"| {' | '.join(line)} |" for line in (TASK_HEADERS, ("---",) * len(TASK_HEADERS), *body)]
        text += "\n".join(["", f"## {task_title(task)}", "", TASK_EXPLANATION, *lines, ""])
        _write_csv(folder / "task.csv", TASK_COLUMNS, task)
        FigureCanvasAgg(curves(task)).print_png(str(folder / "task.png"))
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.tex").write_text(latex(rows), encoding="utf-8")
    _write_csv(folder / "report.csv", COLUMNS + VALUES, rows)
    FigureCanvasAgg(figure(rows)).print_png(str(folder / "report.png"))
    shown = console(rows)
    return shown + (f"\n{task_title(task)}\n{_in_columns([TASK_HEADERS, *body])}\n" if task else "")


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(name, "") for name in columns] for row in rows)


def task_title(rows: Sequence[Row]) -> str:
    work = next((row for row in rows if "steps" in row), rows[0])
    trained = f", {work['steps']} steps, {work['samples']} draws an estimate" if "steps" in work else ""
    return f"The end task: {work['config']}, a quarter of the segments kept{trained}, n = {work['n']}"


def task_table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line a reference or estimator, its seeds side by side."""
    out = []
    for label in dict.fromkeys(row["estimator"] for row in rows):
        own = [row for row in rows if row["estimator"] == label]
        exact = " / ".join(f"{row['exact_match']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in own)
        nll = " / ".join(f"{row['nll']:.3f}" for row in own)
        learned = [row for row in own if "rewards" in row]
        rewards = " / ".join(f"{_last(row['rewards']):.3f}" for row in learned)
        seconds = f"{min(row['seconds'] for row in learned):.3f}" if learned else ""
        out.append((label, exact, nll, rewards, seconds))
    return out


def _last(rewards: Sequence[float]) -> float:
    """Mean of the last tenth of the steps."""
    tail = rewards[-max(len(rewards) // 10, 1) :]
    return sum(tail) / len(tail)


def curves(rows: Sequence[Row]) -> Any:
    """Mean reward of the draws against the step, the mean of ten steps, a line an estimator; seeds alike."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8.4, 4.6), layout="constrained")
    axis = fig.subplots()
    labels = list(dict.fromkeys(row["estimator"] for row in rows if "rewards" in row))
    for row in rows:
        if "rewards" in row:
            window = min(10, len(row["rewards"]))
            ends = range(window, len(row["rewards"]) + 1)
            means = [sum(row["rewards"][end - window : end]) / window for end in ends]
            number = labels.index(row["estimator"])
            first = row["seed"] == min(other["seed"] for other in rows)
            style = "--" if number >= 10 else "-"
            axis.plot(ends, means, style, color=f"C{number % 10}", label=row["estimator"] if first else None)
    axis.set(xlabel="step", ylabel="mean reward of the draws, 10 steps")
    axis.grid(alpha=0.25)
    fig.legend(loc="outside right upper", frameon=False, fontsize=9)
    return fig
