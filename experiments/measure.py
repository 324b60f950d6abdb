"""Measures the cells of a table that are not there yet, and gathers those that are.

Cells are files of `rcp.evaluate.cells`, CELLS/READER/SETTING/METHOD.npz, written after every batch: whatever stops
this, the next call goes on there. A cell that cannot be measured does not stop the others; its row says what it needs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from experiments.grid import CacheSetting, Method, Setting, Table
from experiments.subjects import Work, subject_of
from rcp.config import METHODS
from rcp.evaluate.budgets import make_budgets
from rcp.evaluate.cells import Cell, Piece, digest, open_cell, read_cell
from rcp.evaluate.run import measure, policies_of
from rcp.nn.layout import context_tokens
from rcp.policies import POLICIES
from rcp.types import Batch, Role, UserError

SAY_EVERY = 10.0  # seconds between two lines of progress within a method
FEWEST = 32  # problems that are worth a row where not all of a setting's are measured
AS_STORED = "as it was stored; to measure it: "


class TimeOver(Exception):  # noqa: N818, it is no error
    """The time is over."""


@dataclass(frozen=True)
class Column:
    """One row at one budget: per example (in the order of their numbers), means over the seeds; float64 [n].

    The seconds are means an example. Of pruned caches `kept`, `asked` and `context` count entries, `bytes` is the
    memory of what was kept.
    """

    index: np.ndarray
    nll: np.ndarray
    em: np.ndarray
    kept: np.ndarray
    context: np.ndarray
    prune_seconds: float
    model_seconds: float
    asked: np.ndarray | None = None
    bytes: np.ndarray | None = None


@dataclass(frozen=True)
class Row:
    """What is known of a method in a setting: a column a budget (one for all where it has none), or what it needs.

    `seeds`: those that every column is a mean over.
    """

    method: Method
    columns: dict[str, Column]
    seeds: tuple[int, ...]
    needs: str = ""


@dataclass(frozen=True)
class Part:
    """A setting, measured. `devices`: what its cells were measured on."""

    setting: Setting
    rows: tuple[Row, ...]
    devices: tuple[str, ...]


class Clock:
    """Says how far a method is and how long it will take, and stops when the time is over."""

    def __init__(self, minutes: float | None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.method, self.warm, self.done = "", False, 0

    def stop(self) -> None:
        """The time is over: what there is will be drawn."""
        self.end = time.monotonic()
        print("stopped; the table shows what there is (interrupt again to leave)", flush=True)

    def watch(self, method: str, done: int, batches: int) -> None:
        """Before each batch and after the last; see `rcp.evaluate.sweep`."""
        now = time.monotonic()
        if self.end is not None and now >= self.end and done < batches:
            raise TimeOver
        another = method != self.method or done < self.done  # a method of the same name may have other prompts
        self.done = done
        if another or not self.warm:  # the first batch, which compiles, tells nothing about the others
            self.warm = not another
            self.method, self.first, self.began, self.said = method, done, now, now
        elif now - self.said > SAY_EVERY and done > self.first:
            each, self.said = (now - self.began) / (done - self.first), now
            left = each * (batches - done) / 60
            print(f"  {method}: {done} of {batches} batches, {each:.2f} s each, {left:.1f} min left", flush=True)


Found = tuple[Method, dict[str, list[Piece]], str, tuple[str, ...]]
"""A method, its pieces by budget, what it needs, and the devices."""
Measure = Callable[[Setting, Work, argparse.Namespace, Clock], Iterator[Found]]


def measured(table: Table, options: argparse.Namespace, measure_work: Measure | None = None) -> list[Part]:
    """Every setting of the table, measured as far as can be.

    `measure_work`: measures what `works` puts together; prompts pruned token by token where None.
    """
    clock = Clock(options.budget_minutes)
    measure_work = measure_work or measure_prompts
    return [_part(setting, table.methods, options, clock, measure_work) for setting in table.settings]


def _part(
    setting: Setting, methods: Sequence[Method], options: argparse.Namespace, clock: Clock, measure_work: Measure
) -> Part:
    print(setting.heading, flush=True)
    columns: dict[str, dict[int, dict[str, list[Piece]]]] = {method.name: {} for method in methods}
    needs: dict[str, dict[str, str]] = {method.name: {} for method in methods}  # by what is missing, of which seed
    devices: set[str] = set()
    for work in works(methods, options.seeds, together=isinstance(setting, CacheSetting)):
        for method, found, missing, device in measure_work(setting, work, options, clock):
            devices.update(device)
            if found:
                columns[method.name][work.seed] = found
            if missing:
                seed = "" if work.seed == options.seeds[0] else f"seed {work.seed}: "
                needs[method.name].setdefault(missing, seed + missing)
    rows = []
    for method in methods:
        seeds = alike(columns[method.name])
        keys = dict.fromkeys(key for found in seeds.values() for key in found)
        joined = {key: column_of([found[key] for found in seeds.values()]) for key in keys}
        rows.append(Row(method, joined, tuple(seeds), "; ".join(needs[method.name].values())))
    return Part(setting, tuple(rows), tuple(sorted(devices)))


def works(methods: Sequence[Method], seeds: Sequence[int], *, together: bool = False) -> Iterator[Work]:
    """Trained methods first, each by itself; then the others together; further seeds for what they change.

    `together`: all methods of a seed are one work, as a context that is pruned in its cache is read once for all.
    """
    for place, seed in enumerate(seeds):
        groups: dict[str, list[Method]] = {}
        for method in sorted(methods, key=lambda method: not method.run):
            policy = POLICIES.get(method.policy)
            if place == 0 or method.run or (policy is not None and policy.draws):
                key = ("" if together else method.run) + method.draw + method.granularity + repr(method.task)
                groups.setdefault(key, []).append(method)
        for group in groups.values():
            yield Work(tuple(group), seed)


def measure_prompts(setting: Setting, work: Work, options: argparse.Namespace, clock: Clock) -> Iterator[Found]:
    """Every method of the work, by the reader of prompts that are pruned token by token."""
    unknown = [method for method in work.methods if method.policy not in METHODS]
    for method in unknown:
        yield method, {}, f"needs the method {method.policy!r}, which this version does not have", ()
    work = replace(work, methods=tuple(method for method in work.methods if method not in unknown))
    if not work.methods:
        return
    paths = {method.policy: cell_path(options.cells, setting, method, work.seed) for method in work.methods}
    try:
        subject = subject_of(setting, work, options.runs)
        batches, examples = subject.examples()
        budgets = [budget.key for budget in make_budgets(batches, setting.keep_rates, setting.keep_tokens)]
    except UserError as error:
        for method in work.methods:
            found, device = stored(paths[method.policy], setting)
            note = AS_STORED if found else ""
            yield method, found, f"{note}{error}", device
        return
    policies = policies_of(subject, batches)
    known = examples_of(batches)
    cells = {policy.name: open_cell(paths[policy.name], subject.identity(policy)) for policy in policies}
    names = [digest(batch) for batch in batches]

    def keys_of(method: Method) -> list[str]:
        return budgets if method.single is None else [method.single]

    def done(method: Method) -> dict[str, int]:
        return {key: sum(cells[method.policy].holds(key, name) for name in names) for key in keys_of(method)}

    if any(method.policy in cells and min(done(method).values()) < len(names) for method in work.methods):
        print(f"{', '.join(method.name for method in work.methods)} (seed {work.seed}):", flush=True)
        try:
            measure(subject, batches, examples, policies, lambda policy: cells[policy.name], watch=clock.watch)
        except TimeOver:
            pass
        except KeyboardInterrupt:
            clock.stop()
    for method in work.methods:
        if method.policy not in cells:
            yield method, {}, "needs examples that say which of their segments are needed", ()
            continue
        cell = cells[method.policy]
        pieces = {key: column for key in keys_of(method) if (column := cell.column(key, names))}
        first = {key: column for key, column in first_of(cell, setting, known).items() if key in keys_of(method)}
        yield method, first | pieces, time_needed(done(method), len(names), first), cell.devices


def time_needed(done: dict[str, int], batches: int, first: Mapping[str, Sequence[Piece]] | None = None) -> str:
    """What is missing, by how many batches are done at each budget; "" where nothing is.

    `first`: the pieces that stand in the row where not all are there.
    """
    short = {key: count for key, count in done.items() if count < batches}
    if not short:
        return ""
    where = f" at {', '.join(short)}" if len(short) < len(done) else ""
    rows = min(sum(len(piece.index) for piece in (first or {}).get(key, ())) for key in short)
    there = f"the first {rows} problems" if rows else f"{min(short.values())} of {batches} batches"
    return f"needs more time: {there} are measured{where}"


def stored(path: Path, setting: Setting) -> tuple[dict[str, list[Piece]], tuple[str, ...]]:
    """What a file holds of the first problems; of what it was measured with, which cannot be loaded here, the dtype."""
    try:
        cell = read_cell(path)
    except Exception:  # absent or damaged: nothing is known
        return {}, ()
    if cell.identity.get("dtype", setting.dtype) != setting.dtype:
        return {}, ()
    return first_of(cell, setting), cell.devices


def examples_of(batches: Sequence[Batch]) -> dict[int, tuple[int, int]]:
    """By number of the example: how many tokens its context and its answer have."""
    found: dict[int, tuple[int, int]] = {}
    for batch in batches:
        real = np.asarray(batch.weight) > 0
        answer = np.maximum((np.asarray(batch.role) == Role.ANSWER).sum(axis=1), 1)  # as pieces count it
        rows = (np.asarray(values)[real].tolist() for values in (batch.index, context_tokens(batch), answer))
        found |= {index: (context, own) for index, context, own in zip(*rows, strict=True)}
    return found


def first_of(
    cell: Cell, setting: Setting, known: Mapping[int, tuple[int, int]] | None = None
) -> dict[str, list[Piece]]:
    """By budget: of a setting's problems the first that a cell holds without a gap, where that is enough for a row.

    A cell keeps what was measured of other prompts (another padding, another file). `known`: of today's examples; only
    pieces of as many tokens of context and answer are taken. None: unchecked.
    """

    def held(piece: Piece) -> dict[int, int]:
        own = zip(piece.context.tolist(), piece.answer_tokens.tolist(), strict=True)
        rows = enumerate(zip(piece.index.tolist(), own, strict=True))
        return {number: row for row, (number, size) in rows if known is None or known.get(number) == size}

    budgets = dict.fromkeys(budget for budget, _ in cell.pieces)
    found = {}
    for budget in budgets:
        pieces = [piece for (key, _), piece in cell.pieces.items() if key == budget]
        place = {number: (i, row) for i, piece in enumerate(pieces) for number, row in held(piece).items()}
        wanted = range(setting.first, setting.first + setting.examples)
        taken = [place[number] for number in takewhile(place.__contains__, wanted)]
        if len(taken) >= min(FEWEST, setting.examples):
            rows = [[row for own, row in taken if own == i] for i in range(len(pieces))]
            found[budget] = [piece.take(own) for piece, own in zip(pieces, rows, strict=True) if own]
    return found


def alike(seeds: Mapping[int, dict[str, list[Piece]]]) -> dict[int, dict[str, list[Piece]]]:
    """The seeds that have the same examples at the same budgets as the first of those with the most.

    The others, which were stopped, or stored and cannot be measured here, would make a mean of unlike numbers.
    """
    examples = {
        seed: {key: sorted(int(number) for piece in pieces for number in piece.index) for key, pieces in found.items()}
        for seed, found in seeds.items()
    }
    most = max(examples.values(), key=lambda own: sum(map(len, own.values())), default={})
    return {seed: found for seed, found in seeds.items() if examples[seed] == most}


def column_of(seeds: Sequence[Sequence[Piece]]) -> Column:
    """The pieces of each seed, all of the same examples, put together: the mean over the seeds for each example."""

    def rows(name: str, pieces: Sequence[Piece]) -> np.ndarray:
        values = np.concatenate([np.asarray(getattr(piece, name), np.float64) for piece in pieces])
        return values[np.argsort(np.concatenate([piece.index for piece in pieces]), kind="stable")]

    def mean(name: str) -> np.ndarray:
        return np.mean([rows(name, pieces) for pieces in seeds], axis=0)

    def seconds(name: str) -> float:
        return float(np.mean([sum(getattr(p, name) for p in pieces) / len(rows("index", pieces)) for pieces in seeds]))

    arrays = {name: mean(name) for name in ("index", "nll", "em", "kept", "context")}
    of_caches = ("asked", "bytes")
    known = [name for name in of_caches if all(getattr(p, name) is not None for pieces in seeds for p in pieces)]
    arrays |= {name: mean(name) for name in known}
    return Column(**arrays, prune_seconds=seconds("prune_seconds"), model_seconds=seconds("model_seconds"))


def cell_path(cells: Path, setting: Setting, method: Method, seed: int) -> Path:
    """Where a cell is kept; tables that have the same cell share it."""
    draws = method.policy in POLICIES and POLICIES[method.policy].draws
    name = f"{method.policy}-{method.run}" if method.run else method.name
    name += f"_{method.draw}" if method.draw != "budget" else ""
    name += f"_seed{seed}" if seed and (draws or method.run) else ""
    name += f"_decode{setting.decode}" if setting.decode else ""
    return cells / setting.reader_label / setting.label / f"{name}.npz"
