"""The tables by name: `rcp tables NAME` measures what is missing of one and writes it.

    rcp tables same_budget --runs=runs --budget-minutes=30

A table goes on where it was stopped, cell by cell and batch by batch; a row that lacks a trained run, a data file or a
model says so, and the others are there.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from rcp.types import UserError

TABLES = {
    "cot_influx_main": "word problems x methods x LLMs at equal budgets: answer NLL, exact match",
    "same_budget": "methods against the token budget, 1x to 20x, with seconds and break-even lengths",
    "more_candidates": "answer NLL and exact match against the number of candidates at a fixed budget",
    "ruler": "RULER-style tasks at any length: exact match of what needs no training, at shares of the context",
    "kv_policies": "RULER-style tasks after pruning of the KV cache: every eviction policy at shares of the cache",
    "dynamic_pruning": "perplexity against the share dropped: dynamic context pruning, learned eviction, streams",
    "reasoning": "reasoning-gym families: exact match at the budget of a few shots out of a mixed pool",
    "ablations": "what of the method does the work: stages, rewards, curriculum, question, objectives",
    "estimators": "every gradient estimator of rcp.sampling against the exact gradient",
}
"""What each module of experiments/ shows."""


def main(name: str | None, argv: Sequence[str]) -> int:
    """Runs the table `name` with its flags; exit status as of `rcp`.

    Raises:
      UserError: no such table (lists them), or flags that make no sense.
    """
    if name not in TABLES:
        known = "\n".join(f"  {table:<16} {about}" for table, about in TABLES.items())
        given = f"no table {name!r}" if name else "which table?"
        raise UserError(f"{given}; rcp tables NAME --help has its flags. There are:\n{known}")
    return importlib.import_module(f"experiments.{name}").main(argv)


def run_table(
    name: str,
    table: object,
    options: argparse.Namespace,
    also: Callable[[Sequence[Any]], str] = lambda parts: "",
    measure_work: Any = None,
    judged: Callable[[Any, Sequence[Any]], tuple[Any, Sequence[Any]]] = lambda table, parts: (table, parts),
) -> int:
    """Measures a table, writes its files and says where they are.

    Args:
      also: from what is drawn to more Markdown, which the end of the page gets.
      measure_work: see `experiments.measure.measured`.
      judged: from the table and its measured parts to what is drawn of them.
    """
    from experiments.grid import Table
    from experiments.measure import measured
    from experiments.table_files import write_table
    from rcp.train.parallel import use_compile_cache

    assert isinstance(table, Table)
    options.cells = options.cells or options.output / "cells"
    use_compile_cache()
    drawn, parts = judged(table, measured(table, options, measure_work))
    write_table(name, drawn, parts, options.output, options.bootstrap)
    if text := also(parts):
        with (options.output / f"{name}.md").open("a", encoding="utf-8") as page:
            page.write(f"\n{text}")
    complete = sum(bool(row.columns) and not row.needs for part in parts for row in part.rows)
    rows = sum(len(part.rows) for part in parts)
    print(f"{complete} of {rows} rows are complete; the table is in {options.output}/{name}.md (.csv, .tex, .png)")
    return 0
