"""From a trained run to its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rcp.evaluate import page, plots, tables
from rcp.evaluate.sweep import Results
from rcp.policies import Bm25, First, Full, Last, Learned, NoContext, Oracle, Perplexity, Policy, Random, Shorter
from rcp.types import Batch, UserError

FILES = (
    "report.json",
    "report.csv",
    "report.md",
    "report.png",
    "paired.json",
    "paired.csv",
    "kept.html",
    "results.npz",
)


def make_policies(
    methods: Sequence[str],
    batches: Sequence[Batch],
    *,
    model: Any,
    decode: Callable[[Sequence[int]], str],
    ours: Learned,
) -> list[Policy]:
    """The policies named, in that order. Left out with a word on the terminal: the oracle where no example has support.

    Raises:
      UserError: an unknown method.
    """
    makers: dict[str, Callable[[], Policy]] = {
        "full": Full,
        "none": NoContext,
        "shorter": Shorter,
        "random": Random,
        "first": First,
        "last": Last,
        "perplexity": lambda: Perplexity.of(model),
        "bm25": lambda: Bm25(decode),
        "oracle": Oracle,
        "ours": lambda: ours,
    }
    if unknown := [method for method in methods if method not in makers]:
        raise UserError(f"config.eval.methods: no method {unknown[0]!r}; expected some of {', '.join(makers)}")
    if "oracle" in methods and not any((batch.support == 1).any() for batch in batches):
        print("oracle: left out, the task does not know which segments are needed")
        methods = [method for method in methods if method != "oracle"]
    return [makers[method]() for method in methods]


def write_report(
    folder: Path, results: Results, decode: Callable[[Sequence[int]], str], *, resamples: int, seed: int
) -> list[tables.Row]:
    """Writes `FILES` into the folder, prints the tables, and returns the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = tables.rows(results, resamples=resamples, seed=seed)
    paired = tables.differences(results, resamples=resamples, seed=seed)
    tables.write_results(folder / "results.npz", results)
    tables.write_json(folder / "report.json", rows)
    tables.write_csv(folder / "report.csv", rows, tables.Row)
    tables.write_json(folder / "paired.json", paired)
    tables.write_csv(folder / "paired.csv", paired, tables.Difference)
    (folder / "report.md").write_text(tables.markdown(rows), encoding="utf-8")
    plots.write(folder / "report.png", rows)
    page.write(folder / "kept.html", results, decode)
    tables.print_console(rows)
    return rows
