"""A measured table into files: Markdown, CSV, LaTeX and a picture."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from experiments.grid import Setting, Table
from experiments.measure import Part
from experiments.table_figure import write_figure
from experiments.table_lines import Line, budgets_of, excludes_zero, lines_of, metrics_of, order, problems
from rcp.evaluate.tables import Grid, markdown_lines, print_grids

NAMES = {"published": "published exact match, %", "source": "source"}
LEGEND = (
    "Brackets: 95 % bootstrap intervals over the problems, several seeds averaged within each. Differences are paired, "
    "of the same problems; * marks those whose interval excludes 0. Published: on the model named, for "
    "orientation, from the source named."
)
FEWER = (
    "(n = ...): of fewer problems than the heading names, the first of them: what is measured so far, or was stored of "
    "a run that is not here. Its difference is that on these problems; the figure leaves it out."
)
COSTS = (
    "prune: scoring, selecting and compacting; read: the reader's pass over prompt and gold answer; seconds a prompt. "
    "break-even: the context from which pruning saves time, k + p / r with k the tokens kept, p the seconds of pruning "
    "at this table's contexts (taken as constant) and r the seconds of reading one context token more, (full - none) / "
    "tokens of the full context. Rows are timed when they are measured, on a machine that may do other work: their "
    "seconds compare roughly."
)


def write_table(name: str, table: Table, parts: Sequence[Part], folder: Path, resamples: int) -> None:
    """Writes NAME.md, .csv, .tex and .png into the folder, and prints the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [lines_of(table, part, resamples) for part in parts]
    contents = [(part, grids(table, part, found)) for part, found in zip(parts, lines, strict=True)]
    (folder / f"{name}.md").write_text(markdown(name, table, contents), encoding="utf-8")
    (folder / f"{name}.tex").write_text(latex(table, contents), encoding="utf-8")
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _rounded(v) for k, v in asdict(line).items()} for found in lines for line in found)
    write_figure(folder / f"{name}.png", table, parts, lines)
    for part, found in contents:
        print_grids(found, table.ours)
        print("".join(f"{line}\n" for line in needs(part)), end="")


def _name(metric: str, setting: Setting) -> str:
    """What a heading calls a metric."""
    exact = "exact match, decoded" if setting.decode else "exact match, teacher-forced"
    return {"nll": "answer NLL, nats a token", "em": exact}[metric]


def _rounded(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


def grids(table: Table, part: Part, lines: Sequence[Line]) -> list[Grid]:
    """Of a part: each metric, ours less each, and the costs."""
    n = problems(lines)
    where = f"{part.setting.heading}, n = {n}"
    out = []
    for metric in metrics_of(part.setting):
        mine = [line for line in lines if line.metric == metric]
        name = _name(metric, part.setting)
        last = metric == metrics_of(part.setting)[-1]
        extra = ("published", "source") if last and any(line.published for line in mine) else ()
        out.append(_grid(f"{name}: {where}", part, mine, _value, extra))
        if any(line.difference is not None for line in mine):
            out.append(_grid(f"{table.ours} less each, {name}: {where}", part, mine, _difference))
    if table.costs and any(line.value is not None for line in lines):
        mine = [line for line in lines if line.metric == "nll"]
        out.append(_grid(f"tokens kept, prune + read seconds, break-even tokens: {where}", part, mine, _cost))
    return [grid for grid in out if grid.lines]


def _grid(
    title: str, part: Part, lines: Sequence[Line], cell: Callable[[Line, int], str], extra: Sequence[str] = ()
) -> Grid:
    budgets = [budget for budget in budgets_of(part.setting) if any(line.budget == budget for line in lines)]
    n, body = problems(lines), []
    for method in order(lines):
        mine = {line.budget: line for line in lines if line.method == method}
        first = next(iter(mine.values()))
        texts = [cell(mine[budget], n) if budget in mine else "" for budget in budgets]
        if any(texts) or (extra and first.published):
            body.append((method, *texts, *(getattr(first, name) for name in extra)))
    header = ("method", *(f"@ {budget}" for budget in budgets), *(NAMES[name] for name in extra))
    return Grid(title, header, tuple(body))


def _value(line: Line, n: int) -> str:
    return "" if line.value is None else f"{line.value:.3f} [{line.low:.3f}, {line.high:.3f}]{_fewer(line.n, n)}"


def _fewer(found: int, n: int) -> str:
    """How many problems a cell is of, where the heading names another number."""
    return "" if found == n else f" (n = {found})"


def _difference(line: Line, n: int) -> str:
    if line.difference is None:
        return ""
    text = f"{line.difference:+.4f} [{line.difference_low:+.4f}, {line.difference_high:+.4f}]"
    return text + ("*" if excludes_zero(line) else "") + _fewer(line.difference_n, n)


def _cost(line: Line, n: int) -> str:
    if line.value is None:
        return ""
    even = "" if line.break_even is None else f", {line.break_even:.0f}"
    return f"{line.tokens_kept:.0f}, {line.prune_seconds:.3f} + {line.model_seconds:.3f}{even}{_fewer(line.n, n)}"


def needs(part: Part) -> list[str]:
    """What is missing, and which rows it keeps from being measured, or from being measured with all seeds."""
    found: dict[str, list[str]] = {}
    for row in part.rows:
        if row.needs:
            found.setdefault(row.needs, []).append(row.method.name)
    return [f"- {', '.join(names)}: {text}" for text, names in found.items()]


def markdown(name: str, table: Table, contents: Sequence[tuple[Part, Sequence[Grid]]]) -> str:
    """The whole page."""
    out = [f"# {table.title}", "", table.about, "", f"Written by `rcp tables {name}`.", ""]
    for part, found in contents:
        out += [line for content in found for line in markdown_lines(content, table.ours)]
        if missing := needs(part):
            out += [f"Not measured ({part.setting.heading}):", "", *missing, ""]
    devices = sorted({device for part, _ in contents for device in part.devices})
    methods = {row.method.name: row.method.about for part, _ in contents for row in part.rows if row.method.about}
    marked = any("(n = " in cell for _, found in contents for grid in found for line in grid.lines for cell in line)
    out += [LEGEND, *([FEWER] if marked else []), *([COSTS] if table.costs else []), ""]
    out += [f"- {method}: {about}" for method, about in methods.items()]
    out += ["", f"Measured on: {', '.join(devices) or 'nothing yet'}."]
    return "\n".join(out) + "\n"


def latex(table: Table, contents: Sequence[tuple[Part, Sequence[Grid]]]) -> str:
    """A tabular for each grid."""
    return "\n".join(line for _, found in contents for content in found for line in tabular(content, table.ours))


def tabular(content: Grid, ours: str) -> list[str]:
    """A grid in LaTeX, its title in a comment and an empty line behind it; the row `ours` in bold."""

    def line(cells: Sequence[str]) -> str:
        texts = [f"\\textbf{{{escaped(cell)}}}" if cells[0] == ours else escaped(cell) for cell in cells]
        return " & ".join(texts) + r" \\"

    head = [f"% {content.title}", rf"\begin{{tabular}}{{l{'r' * (len(content.header) - 1)}}}", r"\hline"]
    body = [line(content.header), r"\hline", *map(line, content.lines), r"\hline", r"\end{tabular}", ""]
    return head + body


def escaped(text: str) -> str:
    """Text with the signs of LaTeX made harmless."""
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)
