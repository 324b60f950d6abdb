"""The numbers of a measured table: a line a row, budget and metric, with intervals, paired differences and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.grid import Setting, Table
from experiments.measure import Column, Part, Row
from experiments.published import published
from rcp.evaluate.tables import bootstrap_means, interval

SEED = 0  # of the bootstrap; all rows see the same draws, so that differences are paired


@dataclass(frozen=True)
class Line:
    """A line of the CSV file. Numbers are None where they are not known; `needs` then says what is missing.

    `budget`: "256 tokens", or a fraction. `metric`: "nll" or "em". `n`: problems of `value`. `difference`: ours less
    this, on the `difference_n` problems that both are measured on.
    `tokens_kept`, `context_tokens`: means a prompt, in entries where a cache is pruned; the seconds too.
    `break_even`: see `break_even`; not of pruned caches, which are read whole.
    `entries_asked`, `cache_bytes`: of pruned caches, means a prompt.
    """

    reader: str
    setting: str
    method: str
    budget: str
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    n: int = 0
    seeds: str = ""
    context_tokens: float | None = None
    tokens_kept: float | None = None
    prune_seconds: float | None = None
    model_seconds: float | None = None
    break_even: float | None = None
    published: str = ""
    source: str = ""
    needs: str = ""
    entries_asked: float | None = None
    cache_bytes: float | None = None
    difference_n: int = 0


def metrics_of(setting: Setting) -> tuple[str, ...]:
    return ("nll", "em") if setting.decode or setting.exact else ("nll",)


def budgets_of(setting: Setting) -> list[str]:
    """The keys of the budgets (`rcp.evaluate.budgets.Budget.key`), the larger first among rates and among tokens."""
    tokens = [f"{count} tokens" for count in sorted(setting.keep_tokens, reverse=True)]
    return [f"{rate:g}" for rate in sorted(setting.keep_rates, reverse=True)] + tokens


def lines_of(table: Table, part: Part, resamples: int) -> list[Line]:
    """Every line of a part. Methods without a budget stand at every one, to be compared there."""
    ours = next((row for row in part.rows if row.method.name == table.ours), None)
    cost = reading_cost(part)
    out = []
    for row in part.rows:
        known = published(row.method.name, part.setting.benchmark or str(part.setting.task.get("name", "")))
        text: dict[str, Any] = {
            "published": ", ".join(map(str, known)),
            "source": "; ".join(dict.fromkeys(entry.source for entry in known)),
            "needs": row.needs,
        }
        for metric in metrics_of(part.setting):
            found = 0
            for budget in budgets_of(part.setting):
                if (column := at(row, budget)) is not None:
                    mine = at(ours, budget) if ours is not None and ours is not row else None
                    out.append(_line(part, row, column, mine, budget, metric, resamples, cost, text))
                    found += 1
            if not found:
                names = (part.setting.reader, part.setting.label, row.method.name, "", metric)
                out.append(Line(*names, **text))
    return out


def at(row: Row, budget: str) -> Column | None:
    """The row's column at a budget; a method without one has a single column for all."""
    return row.columns.get(row.method.single or budget)


def _line(
    part: Part,
    row: Row,
    column: Column,
    ours: Column | None,
    budget: str,
    metric: str,
    resamples: int,
    cost: float | None,
    text: dict[str, Any],
) -> Line:
    values, cached = getattr(column, metric), column.asked is not None
    draws = bootstrap_means(values[None], resamples, [SEED])[0]
    low, high = interval(draws)
    numbers: dict[str, Any] = {"value": float(values.mean()), "low": low, "high": high}
    mine, its = (np.zeros(0, int),) * 2 if ours is None else shared(ours, column)
    if ours is not None and len(mine):
        pair = np.stack([getattr(ours, metric)[mine], values[its]])
        low, high = interval(np.subtract(*bootstrap_means(pair, resamples, [SEED])))
        mean = float(np.subtract(*pair).mean())
        numbers |= {"difference": mean, "difference_low": low, "difference_high": high, "difference_n": len(mine)}
    return Line(
        part.setting.reader,
        part.setting.label,
        row.method.name,
        budget,
        metric,
        **numbers,
        n=len(values),
        seeds=" ".join(map(str, row.seeds)),
        context_tokens=float(column.context.mean()),
        tokens_kept=float(column.kept.mean()),
        prune_seconds=column.prune_seconds,
        model_seconds=column.model_seconds,
        entries_asked=None if column.asked is None else float(column.asked.mean()),
        cache_bytes=None if column.bytes is None else float(column.bytes.mean()),
        break_even=None if row.method.policy in ("none", "full") or cached else break_even(column, cost),
        **text,
    )


def shared(one: Column, other: Column) -> tuple[np.ndarray, np.ndarray]:
    """Where the problems of both stand in each of them."""
    if np.array_equal(one.index, other.index):
        return np.arange(len(one.index)), np.arange(len(one.index))
    return np.intersect1d(one.index, other.index, return_indices=True)[1:]


def reading_cost(part: Part) -> float | None:
    """Seconds that the reader needs for one context token more: (full - none) / tokens of the full context."""
    own = [row for row in part.rows if row.columns and not row.method.task]  # of other contexts than the table's: no
    found = {row.method.policy: next(iter(row.columns.values())) for row in own}
    if "full" not in found or "none" not in found:
        return None
    cost = (found["full"].model_seconds - found["none"].model_seconds) / float(found["full"].kept.mean())
    return cost if cost > 0 else None


def break_even(column: Column, cost: float | None) -> float | None:
    """The context from which pruning saves time: N* = k + p / r tokens.

    Reading all of N tokens costs r N, pruned to k it costs r k and p for the pruning. p is what was measured at this
    table's contexts and is taken as constant, so that N* is exact where it is near them, and a guess far away.
    """
    return None if cost is None else float(column.kept.mean()) + column.prune_seconds / cost


def excludes_zero(line: Line) -> bool:
    """Whether the paired interval lies on one side of 0."""
    low, high = line.difference_low, line.difference_high
    return low is not None and high is not None and (low > 0 or high < 0)


def problems(lines: Sequence[Line]) -> int:
    """How many problems a part of a table has: as many as the row with the most."""
    return max((line.n for line in lines), default=0)


def order(lines: Sequence[Line]) -> list[str]:
    """The methods in the order of their rows."""
    return list(dict.fromkeys(line.method for line in lines))
