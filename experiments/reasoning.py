"""Exact match where a small model can show some: short problems, many worked examples, the budget of a few of them.

    rcp train --config=configs/reasoning.py --workdir=runs/reasoning && rcp tables reasoning

Of the candidates (64, as in `configs/reasoning.py`, or --shots) half are of the question's family. Two rows answer
the same questions after other contexts, which no method has: four and sixteen examples of the right family. The oracle
keeps the family's own first, out of the same candidates. Exact match is teacher-forced unless --decode says otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.grid import Method, Setting, Table, chosen, parser_of
from experiments.measure import Column, Part
from experiments.table_lines import at, budgets_of
from experiments.tables import run_table
from rcp.config_file import load_config

NAME = "reasoning"
FILE = Path(__file__).resolve().parent.parent / "configs" / "reasoning.py"


def of_family(shots: int) -> Method:
    """The row of so many examples of the question's family, whatever the budget."""
    about = f"reference: another context, {shots} examples of the question's family, read whole"
    return Method(f"family_{shots}", "full", task={"shots": shots, "distractors": 0}, about=about)


METHODS = (
    Method("ours", "ours", NAME, f"configs/{NAME}.py", about="trained by configs/reasoning.py"),
    Method("none", "none", about="the question alone"),
    Method("full", "full", about="all candidates, whatever the budget"),
    Method("shorter", "shorter", about="uncompressed: the first candidates that fit the budget whole"),
    Method("random", "random", about="candidates at random"),
    Method("first", "first"),
    Method("last", "last"),
    Method("bm25", "bm25"),
    Method("embedding", "embedding"),
    Method("perplexity", "perplexity"),
    Method("oracle", "oracle", about="the family's own candidates first; knows the family"),
    of_family(4),
    of_family(16),
)


def setting_of(options: argparse.Namespace, shots: int) -> Setting:
    """The questions, reader and budgets (where none is given) of the config; half of the candidates are others'."""
    config = load_config(FILE)
    return Setting(
        name=f"{NAME}_{shots}",
        title=f"{shots} candidates of mixed families",
        task={"name": config.task.name, **config.task.fields, "shots": shots, "distractors": shots // 2},
        reader=config.model.name,
        max_segments=shots,
        max_answer=config.data.max_answer,
        examples=options.examples,
        keep_tokens=tuple(options.keep_tokens) or config.eval.keep_tokens,
        batch_size=options.batch_size,
        decode=options.decode,
        exact=True,
        dtype=options.dtype,
        at=shots,
        split=options.split,
        first=options.first,
    )


def by_family(parts: Sequence[Part]) -> str:
    """Exact match of every row by the family of the question, a table a budget, in Markdown."""
    out = []
    for part in parts:
        families = tuple(part.setting.task["families"])

        def of_families(column: Column, count: int = len(families)) -> list[np.ndarray]:
            """Exact match: question i is of family i modulo their number; see `rcp.data.tasks.reasoning_gym`."""
            return [column.em[column.index % count == number] for number in range(count)]

        for budget in budgets_of(part.setting):
            found = [(row.method.name, column) for row in part.rows if (column := at(row, budget)) is not None]
            if not found:
                continue
            counts = [f"{family} (n = {len(values)})" for family, values in zip(families, of_families(found[0][1]))]
            out += [f"Exact match by family @ {budget}", "", f"| method | {' | '.join(counts)} |"]
            out += ["|---" * (len(families) + 1) + "|"]
            for name, column in found:
                same = np.array_equal(column.index, found[0][1].index)
                means = [
                    (f"{values.mean():.3f}" if len(values) else "n/a") + ("" if same else f" (n = {len(values)})")
                    for values in of_families(column)
                ]
                out.append(f"| {name} | {' | '.join(means)} |")
            out.append("")
    return "\n".join(out)


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """The table's flags; without --keep-tokens the budgets are those of the config's evaluation."""
    own = ("readers", "datasets", "keep_rates", "max_answer")  # the config's
    unset = {"keep_tokens": "those of the config's evaluation"}
    parser = parser_of(NAME, __doc__, without=own, unset=unset, keep_tokens=(), shots=(64,), batch_size=16)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Measures, writes and prints the table."""
    options = options_of(argv)
    table = Table(
        title="Few-shot problems of reasoning-gym out of mixed candidates",
        about="Worked examples of several families before each question; a budget counts their tokens.",
        settings=tuple(setting_of(options, shots) for shots in options.shots),
        methods=chosen(METHODS, options.methods),
    )
    return run_table(NAME, table, options, by_family)
