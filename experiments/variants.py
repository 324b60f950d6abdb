"""One Markdown table out of several evaluated runs: a row a method, one "ours" row a run, a column a keep rate.

    python -m experiments.variants runs/facts runs/rl="reinforcement alone" [--metric=em] [--group="two-hop"]
        [--digits=3] [--output=table.md]

Reads eval/report.json of each folder, or eval/groups.json for a group. The other methods are those of the first run;
a warning names those that have other numbers in another run (then the runs do not share their questions or reader).
A run is called by its folder unless `=NAME` follows. Brackets: 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcp.types import UserError

METRICS = {"em": "exact match", "nll": "answer NLL"}
UNSWEPT = ("full", "none")
OURS = "ours"
NAMES = {"full": "full context", "shorter": "shorter prompt, uncompressed"}

Entry = Mapping[str, Any]


def read_run(workdir: Path, group: str) -> list[Entry]:
    """The rows of a group ("all": every example) of an evaluated run.

    Raises:
      UserError: no report there, or it has no such group.
    """
    path = workdir / "eval" / ("report.json" if group == "all" else "groups.json")
    if not path.is_file():
        raise UserError(f"{path} is missing: run rcp eval --workdir={workdir}")
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = [row for row in rows if row.get("group", "all") == group]
    if not found:
        known = ", ".join(dict.fromkeys(row.get("group", "all") for row in rows))
        raise UserError(f"{path} has no group {group!r}; expected one of {known}")
    return found


def table(runs: Mapping[str, Sequence[Entry]], metric: str, *, group: str = "all", digits: int = 3) -> str:
    """The table in Markdown. `runs`: rows by what the run is called; the first gives the rows of other methods."""
    rows = {name: [row for row in entries if row["metric"] == metric] for name, entries in runs.items()}
    first = next(iter(rows.values()))
    swept = [row for entries in rows.values() for row in entries if row["method"] not in UNSWEPT]
    rates = sorted({row["keep_rate_asked"] for row in swept} - {None}, reverse=True)
    counts = sorted({row["n"] for entries in rows.values() for row in entries})
    title = f"{METRICS[metric]}, {'' if group == 'all' else group + ', '}n = {' / '.join(map(str, counts))}"
    lines = [[title, *(f"keep {_short(rate)}" for rate in rates)]]
    for method in dict.fromkeys(str(row["method"]) for row in first if row["method"] != OURS):
        lines.append([NAMES.get(method, method), *_cells(first, method, rates, digits)])
    for name, entries in rows.items():
        cells = _cells(entries, OURS, rates, digits)
        lines.append([f"**{OURS}, {name}**", *(f"**{cell}**" if cell else "" for cell in cells)])
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]]) + "\n"


def _cells(entries: Sequence[Entry], method: str, rates: Sequence[float], digits: int) -> list[str]:
    """The value with its interval at each rate; full, none and a pruner that decides itself how much it keeps have one
    value, with its interval the first time only."""
    found = {row["keep_rate_asked"]: row for row in entries if row["method"] == method}
    if method in UNSWEPT or None in found:
        (row,) = found.values()
        return [_cell(row, digits), *(_number(row["value"], digits) for _ in rates[1:])]
    return [_cell(found[rate], digits) if rate in found else "" for rate in rates]


def _cell(row: Entry, digits: int) -> str:
    interval = ", ".join(_number(row[key], digits) for key in ("ci_low", "ci_high"))
    return f"{_number(row['value'], digits)} [{interval}]"


def _number(value: float | None, digits: int) -> str:
    """.123 and 1.000: without the zero before the point, as in a table of shares. None is not available."""
    if value is None:
        return "n/a"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def _short(rate: float) -> str:
    text = f"{rate:g}"
    return text[1:] if text.startswith("0.") else text


def differing(runs: Mapping[str, Sequence[Entry]], metric: str) -> list[str]:
    """Methods other than ours whose value in some run is not that of the first, at a keep rate that both have."""

    def values(entries: Sequence[Entry]) -> dict[tuple[str, float], float]:
        return {(r["method"], r["keep_rate_asked"]): r["value"] for r in entries if r["metric"] == metric}

    first, *others = (values(entries) for entries in runs.values())
    return list(
        dict.fromkeys(
            key[0]
            for other in others
            for key, value in other.items()
            if key[0] != OURS and key in first and abs(value - first[key]) > 1e-9
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, or writes it; exit code 2 where a run cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="WORKDIR[=NAME]")
    parser.add_argument("--metric", choices=METRICS, default="em")
    parser.add_argument("--group", default="all", help='"all", or a group of groups.json such as "two-hop"')
    parser.add_argument("--digits", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the table there instead of to stdout")
    arguments = parser.parse_args(argv)
    runs: dict[str, list[Entry]] = {}
    try:
        for word in arguments.runs:
            folder, _, name = word.partition("=")
            name = name or Path(folder).resolve().name
            if name in runs:
                raise UserError(f"two runs are called {name!r}: give them names, as in {folder}=NAME")
            runs[name] = read_run(Path(folder), arguments.group)
    except UserError as error:
        print(f"variants: {error}", file=sys.stderr)
        return 2
    if other := differing(runs, arguments.metric):
        print(f"warning: {', '.join(other)} differ between the runs; the table has the first run's", file=sys.stderr)
    text = table(runs, arguments.metric, group=arguments.group, digits=arguments.digits)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
