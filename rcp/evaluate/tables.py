"""Numbers out of results: rows with bootstrap intervals, paired differences, the files and tables that hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcp.evaluate.results import UNSWEPT, Results

METRICS = ("em", "nll")
PER_EXAMPLE = ("index", "group", "context", "answer_tokens", "kept", "nll", "em")
PER_SETTING = ("prune_seconds", "model_seconds")
NAMES = {"em": "exact match", "nll": "answer NLL"}
LEVEL = 95.0
EM = {
    False: "em: every token of the gold answer is the model's most likely one given the gold ones before it "
    "(teacher-forced; the same as greedy decoding giving exactly the gold answer).",
    True: "em: the answer was decoded greedily and judged by the task.",
}
LEGEND = (
    "nll: nats an answer token. Brackets: 95 % bootstrap intervals. "
    "kept: share of the context's tokens that the model read, by keep rate. "
    "ms: an example, at the smallest keep rate; pruning is scoring, selecting and compacting."
)


@dataclass(frozen=True)
class Row:
    """One number of the report. `metric`: "em" exact match (higher is better), "nll" nats an answer token (lower is).

    `keep_rate_asked` is 1 for full, 0 for none, NaN for a pruner that decides itself how much it keeps (`eval.draw`).
    `keep_rate_got` is the mean over the examples of the share of context tokens kept; the seconds are means an example;
    `group` is "all" or the name of a group of examples.
    """

    group: str
    method: str
    keep_rate_asked: float
    keep_rate_got: float
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    seed: int
    prune_seconds: float
    model_seconds: float

    @property
    def swept(self) -> bool:
        """Whether its method heeds the budget."""
        return self.method not in UNSWEPT and not np.isnan(self.keep_rate_asked)


@dataclass(frozen=True)
class Difference:
    """ours - method on the same examples; positive is better for "em", negative for "nll".

    `keep_rate`: asked of what heeds it, of the two.
    """

    group: str
    method: str
    keep_rate: float
    metric: str
    difference: float
    ci_low: float
    ci_high: float
    n: int


def bootstrap_means(values: np.ndarray, resamples: int, seed: Sequence[int]) -> np.ndarray:
    """Means of `resamples` draws with replacement of the columns, float64 [rows, resamples].

    All rows of `values` [rows, n] see the same draws, so that differences of rows are paired; `seed` repeats them.
    """
    n = values.shape[1]
    counts = np.random.default_rng(list(seed)).multinomial(n, np.full(n, 1 / n), size=resamples)
    return values.astype(np.float64) @ counts.T / n


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap interval at 95 %."""
    low, high = np.percentile(draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _parts(results: Results) -> Iterator[tuple[str, np.ndarray, int]]:
    """(group name, its rows bool [n], number for seeding): all examples, then each group of some of them."""
    yield "all", np.ones(len(results.group), bool), 0
    if len(results.groups) > 1:
        for number, name in enumerate(results.groups):
            if (rows := results.group == number).any() and not rows.all():
                yield name or f"group {number}", rows, number + 1


def rows(results: Results, *, resamples: int, seed: int) -> list[Row]:
    """A row for every group, setting and metric."""
    out, asked = [], [results.asked(setting) for setting in results.settings]
    for group, members, number in _parts(results):
        got = (results.kept[:, members] / np.maximum(results.context[members], 1)).mean(axis=1)
        for metric in METRICS:
            values = getattr(results, metric)[:, members]
            draws = bootstrap_means(values, resamples, [seed, number])
            for i, (method, _) in enumerate(results.settings):
                out.append(
                    Row(
                        group=group,
                        method=method,
                        keep_rate_asked=np.nan if (rate := asked[i]) is None else rate,
                        keep_rate_got=float(got[i]),
                        metric=metric,
                        value=float(values[i].mean()),
                        ci_low=interval(draws[i])[0],
                        ci_high=interval(draws[i])[1],
                        n=int(members.sum()),
                        seed=seed,
                        prune_seconds=float(results.prune_seconds[i]),
                        model_seconds=float(results.model_seconds[i]),
                    )
                )
    return out


def differences(results: Results, *, resamples: int, seed: int, ours: str = "ours") -> list[Difference]:
    """Paired differences of `ours` to every other method at the same keep rate; full and none face it at every rate,
    and where `ours` heeds no budget itself it faces every method at every rate."""
    mine = {rate: i for i, (method, rate) in enumerate(results.settings) if method == ours}
    if mine and ours in results.unswept:
        (own,) = mine.values()
        asked = [rate for method, rate in results.settings if method not in results.unswept]
        mine = dict.fromkeys(asked or mine, own)
    out = []
    for group, members, number in _parts(results):
        for metric in METRICS:
            values = getattr(results, metric)[:, members].astype(np.float64)
            draws = bootstrap_means(values, resamples, [seed, number])
            for rate, place in mine.items():
                for other, (method, asked) in enumerate(results.settings):
                    if method != ours and (asked == rate or method in results.unswept):
                        mean = float((values[place] - values[other]).mean())
                        low, high = interval(draws[place] - draws[other])
                        out.append(Difference(group, method, rate, metric, mean, low, high, int(members.sum())))
    return out


def overall(entries: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows over all examples as the report has them: without the key `group`, and each number once."""
    return [
        {name: value for name, value in asdict(row).items() if name != "group"} for row in entries if row.group == "all"
    ]


def write_table(stem: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """`entries`, which share their keys, as `stem`.json (a list of objects) and as `stem`.csv.

    A number that is not available (NaN) is null there and empty here.
    """
    entries = [{key: None if value != value else value for key, value in entry.items()} for entry in entries]
    stem.with_suffix(".json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(entries[0]) if entries else [])
        writer.writeheader()
        writer.writerows(entries)


def write_results(path: Path, results: Results) -> None:
    """Everything per example, so that another analysis needs no second run. Arrays as in `Results`; settings in two."""
    np.savez_compressed(
        path,
        method=np.array([method for method, _ in results.settings]),
        keep_rate=np.array([rate for _, rate in results.settings]),
        groups=np.array(results.groups),
        decoded=results.decoded,
        how=results.how,
        unswept=np.array(results.unswept),
        **{name: getattr(results, name) for name in PER_EXAMPLE + PER_SETTING},
    )


def read_results(path: Path) -> Results:
    """What `write_results` wrote (the shown examples apart)."""
    with np.load(path) as file:
        data = dict(file)
    settings = tuple(zip(data.pop("method").tolist(), data.pop("keep_rate").tolist()))
    how = {"decoded": bool(data.pop("decoded", False)), "how": str(data.pop("how", ""))}
    names = {name: tuple(data.pop(name).tolist()) for name in ("groups", "unswept") if name in data}
    return Results(settings=settings, **names, **how, **data)


@dataclass(frozen=True)
class Grid:
    """A table ready to print: one line a method, the cells as text."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def grid(entries: Sequence[Row], group: str, metric: str) -> Grid:
    """One metric of one group: a line a method, a column a keep rate; methods that heed none in every column.

    The last columns are milliseconds an example at the smallest keep rate, of pruning and of the model.
    """
    entries = [row for row in entries if row.group == group and row.metric == metric]
    rates = sorted({row.keep_rate_asked for row in entries if row.swept}, reverse=True)
    columns = [f"{metric} @ {rate:g}" for rate in rates] or [metric]
    lines = []
    for method in dict.fromkeys(row.method for row in entries):
        mine = sorted((row for row in entries if row.method == method), key=lambda row: -row.keep_rate_asked)
        cells = []
        for rate in rates or [np.nan]:
            found = [row for row in mine if row.keep_rate_asked == rate or not row.swept]
            cells.append(_cell(found[0]) if found else "")
        kept = " / ".join(f"{row.keep_rate_got:.2f}" for row in mine)
        seconds = (f"{1e3 * mine[-1].prune_seconds:.1f}", f"{1e3 * mine[-1].model_seconds:.1f}")
        lines.append((method, *cells, kept, *seconds))
    header = ("method", *columns, "kept", "prune ms", "model ms")
    title = f"{NAMES[metric]}, {group} (n = {entries[0].n if entries else 0})"
    return Grid(title, header, tuple(lines))


def _cell(row: Row) -> str:
    """The value with its interval, or that there is none: an endpoint may give no likelihoods."""
    return "not available" if np.isnan(row.value) else f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"


def grids(entries: Sequence[Row]) -> list[Grid]:
    """All of them: each group, each metric."""
    return [grid(entries, group, metric) for group in groups_of(entries) for metric in METRICS]


def groups_of(entries: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.group for row in entries))


def legend(decoded: bool | str) -> str:
    """What the columns are; `decoded` or `how` of `Results`."""
    return f"{f'em: {decoded}.' if isinstance(decoded, str) else EM[decoded]} {LEGEND}"


def markdown(entries: Sequence[Row], *, decoded: bool | str = False) -> str:
    """The tables in Markdown, with a legend of `decoded` or `how` of `Results`."""
    out = [line for table in grids(entries) for line in markdown_lines(table)]
    return "\n".join([*out, legend(decoded)]) + "\n"


def markdown_lines(table: Grid, ours: str = "ours") -> list[str]:
    """One table in Markdown, its title and an empty line behind it; the row `ours` in bold."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def bold(cells: Sequence[str]) -> list[str]:
        return [f"**{cell}**" if cell else "" for cell in cells]

    lines = [line(bold(cells) if cells[0] == ours else cells) for cells in table.lines]
    return [f"### {table.title}", "", line(table.header), "|" + "---|" * len(table.header), *lines, ""]


def print_console(entries: Sequence[Row], *, decoded: bool | str = False) -> None:
    """The same tables on the terminal."""
    from rich.console import Console

    print_grids(grids(entries))
    Console().print(legend(decoded), style="dim", highlight=False)


def print_grids(contents: Sequence[Grid], ours: str = "ours") -> None:
    """Tables on the terminal. On a narrow one long lines wrap; no figure is cut off."""
    from rich.console import Console
    from rich.table import Table

    width = Console().width
    for content in contents:
        table = Table(title=content.title, title_justify="left", header_style="bold")
        for i, name in enumerate(content.header):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for line in content.lines:
            table.add_row(*line, style="bold green" if line[0] == ours else None)
        needed = Console(width=1000).measure(table).maximum
        Console(width=max(width, needed)).print(table)
