"""Measures the cells of a table of eviction policies: contexts read once for all of its rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.grid import LENGTHS, CacheSetting, Method
from experiments.measure import AS_STORED, Clock, Found, TimeOver, cell_path, stored, time_needed
from experiments.subjects import Work, config_of, loaded_reader, training
from rcp.data.pack import EncodedExample, bucket, encode, round_up
from rcp.data.tasks.asked import questions_of
from rcp.data.tasks.base import example_rng
from rcp.evaluate.asking import Asking
from rcp.evaluate.budgets import Budget, make_budgets
from rcp.evaluate.cache_bench import CacheBench, CacheRow
from rcp.evaluate.cells import Cell, digest, open_cell
from rcp.evaluate.subject import Subject, described, of_reader
from rcp.eviction import ADA, GLOBAL, POLICIES, UNIFORM, SinksWindow
from rcp.eviction.prompt import Eviction
from rcp.infer.trained_eviction import load_eviction
from rcp.pretrained import Pretrained
from rcp.types import Batch, Example, Role, UserError

WAYS: dict[str, dict[str, Any]] = {
    "uniform": {"allotment": UNIFORM},
    "ada": {"allotment": ADA},
    "global": {"allotment": GLOBAL},
    "repacked": {"repack": True},
    "recent": {"recent": 32},
}
"""What a row's name may add to that of its policy: fields of its `Eviction`."""
ANEW = ("none", "shorter")
WIDTHS = 8
"""Question and answer are padded to a multiple of this."""


def measure_caches(setting: Any, work: Work, options: argparse.Namespace, clock: Clock) -> Iterator[Found]:
    """Every method of the work; see `experiments.measure.measured`."""
    assert isinstance(setting, CacheSetting)
    paths = {method.name: _path(options.cells, setting, method, work.seed) for method in work.methods}
    try:
        loaded = loaded_reader(setting.reader, setting.dtype)
        subject = of_reader(config_of(setting, work.methods[0], ["full"], work.seed), loaded)
        contexts, asking = prompts_of(setting, subject, work.seed)
        swept = make_budgets([batches[0] for batches in contexts], setting.keep_rates, setting.keep_tokens)
    except UserError as error:
        yield from (_as_stored(setting, method, paths[method.name], error) for method in work.methods)
        return
    supported = any((batch.support == 1).any() for batches in contexts for batch in batches)
    rows: dict[str, CacheRow] = {}
    for method in work.methods:
        try:
            rows[method.name] = row_of(setting, method, work.seed, options.runs, loaded, supported)
        except UserError as error:
            yield _as_stored(setting, method, paths[method.name], error)
    if not rows:
        return
    cells = {name: open_cell(paths[name], identity(setting, row, loaded, work.seed)) for name, row in rows.items()}
    methods = [method for method in work.methods if method.name in rows]
    names = [digest(batches[0]) for batches in contexts]
    budgets = {method.name: [Budget(float(method.single))] if method.single else swept for method in methods}
    try:
        _measure(partial(CacheBench, loaded, asking=asking), rows, contexts, cells, names, budgets, clock)
    except TimeOver:
        pass
    except KeyboardInterrupt:
        clock.stop()
    for method in methods:
        cell = cells[method.name]
        done = {b.key: sum(cell.holds(b.key, name) for name in names) for b in budgets[method.name]}
        pieces = {key: column for key in done if (column := cell.column(key, names))}
        yield method, pieces, time_needed(done, len(names)), cell.devices


def _as_stored(setting: CacheSetting, method: Method, path: Path, error: UserError) -> Found:
    """What is known of a row that cannot be measured here, and why it cannot."""
    found, device = stored(path, setting)
    return method, found, f"{AS_STORED if found else ''}{error}", device


def _measure(
    make_bench: Callable[[Sequence[CacheRow]], CacheBench],
    rows: dict[str, CacheRow],
    contexts: Sequence[Sequence[Batch]],
    cells: dict[str, Cell],
    names: Sequence[str],
    budgets: dict[str, list[Budget]],
    clock: Clock,
) -> None:
    """Batch by batch, for all rows at once: a context is read once for all of them."""
    missing: dict[int, dict[str, list[Budget]]] = {}
    for number, name in enumerate(names):
        wanted = {row: [b for b in own if not cells[row].holds(b.key, name)] for row, own in budgets.items()}
        if any(wanted.values()):
            missing[number] = wanted
    if not missing:
        return
    lacking = {row for wanted in missing.values() for row, own in wanted.items() if own}
    bench = make_bench([rows[row] for row in rows if row in lacking])  # needs of the others would slow the reading
    for row, cell in cells.items():
        if cell.stale:
            print(f"{row}: {cell.note(0, len(names))}", flush=True)
    try:
        for place, (number, wanted) in enumerate(missing.items()):
            clock.watch("all rows", place, len(missing))
            for (row, key), piece in bench.batch(contexts[number], wanted).items():
                cells[row].pieces[key, names[number]] = piece
            for row, own in wanted.items():
                if own:
                    cells[row].save(jax.devices()[0].device_kind)
    finally:
        spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in bench.seconds.items())
        print(f"seconds, compilation excluded: {spent or 'none'}", flush=True)
        programs = {name: count for name, count in bench.programs.items() if count}
        print(f"compiled programs: {sum(programs.values())} {programs}", flush=True)


def _path(cells: Path, setting: CacheSetting, method: Method, seed: int) -> Path:
    """Where a cell is kept. Rows that read prompts of their own are the same with and without the question in sight."""
    if method.name in ANEW:
        setting = replace(setting, name=setting.name.removesuffix("_aware"))
    return cell_path(cells, setting, method, seed)


def row_of(
    setting: CacheSetting, method: Method, seed: int, runs: Path, loaded: Pretrained, supported: bool
) -> CacheRow:
    """How a method prunes. `supported`: whether the examples say which segments their answers need.

    Raises:
      UserError: a trained run that is not there; an oracle that does not know what is needed.
    """
    policy, *ways = method.name.split("+")
    told: dict[str, Any] = {"sinks": setting.sinks}
    for way in ways:
        told |= WAYS[way]
    if policy in ANEW:
        return CacheRow(method.name)
    if policy == "oracle":
        if setting.questions > 1:
            raise UserError("needs one question a context: of the others it is not known what they need")
        if not supported:
            raise UserError("needs a task that knows which segments its answers need")
        return CacheRow(method.name, Eviction(SinksWindow(), sinks=setting.sinks), needed=True)
    if method.run:
        eviction = trained_eviction(setting, method, seed, runs, loaded)
        if eviction.policy.asks and not setting.aware:
            raise UserError("looks at the question: measured with --question")
        return CacheRow(method.name, replace(eviction, **told))
    return CacheRow(method.name, Eviction(POLICIES[policy](), **told))


def trained_eviction(setting: CacheSetting, method: Method, seed: int, runs: Path, loaded: Pretrained) -> Eviction:
    """The eviction of a trained run."""
    folder, command = training(setting, method, seed, runs)
    if not (folder / "config.json").exists():
        raise UserError(f"needs a trained run: {command}")
    return load_eviction(folder, loaded)


def prompts_of(setting: CacheSetting, subject: Subject, seed: int) -> tuple[list[list[Batch]], Asking]:
    """The contexts, in batches by their number, and how they are asked. A batch of each question a context.

    All static lengths are those of the setting, but for that of question and answer and where a prompt is longer: more
    examples leave the batches that are there as they are.

    Raises:
      UserError: no context of the number `setting.first`.
    """
    encoded, tokenizer = subject.encoded(), subject.tokenizer
    numbers = range(setting.first, len(encoded))
    if not numbers:
        raise UserError(f"--first={setting.first}: {setting.title} has {len(encoded)} contexts")
    asked = {i: _questions(setting, subject, encoded.examples[i], i) for i in numbers}
    rows: list[list[tuple[EncodedExample, bool]]] = [[(encoded[i], True) for i in asked]]
    for turn in range(1, max(map(len, asked.values()))):
        # A context with fewer questions is asked its first one again, which does not count.
        own = {i: (own[turn], True) if len(own) > turn else (own[0], False) for i, own in asked.items()}
        rows.append([(encode(example, tokenizer, index=i), real) for i, (example, real) in own.items()])
    examples = [{i: own[min(turn, len(own) - 1)] for i, own in asked.items()} for turn in range(len(rows))]
    longest = max([int(setting.at), *(example.length for row in rows for example, _ in row)])
    length = bucket(longest, LENGTHS) or LENGTHS[-1]
    size = setting.batch_size
    contexts = []
    for at in range(0, len(asked), size):
        batches = []
        for row in rows:
            batch = encoded.collate([example for example, _ in row[at : at + size]], length, size)
            there = np.array([real for _, real in row[at : at + size]] + [False] * size)[:size]
            batches.append(batch._replace(weight=(batch.weight * there).astype(np.float32)))
        contexts.append(batches)
    every = [batch for batches in contexts for batch in batches]
    behind = (Role.ANSWER,) if setting.aware else (Role.QUESTION, Role.ANSWER)
    widest = max(int(np.isin(batch.role, behind).sum(axis=1).max()) for batch in every) + setting.aware
    answer = max(int((batch.role == Role.ANSWER).sum(axis=1).max()) for batch in every)
    check = subject.task.check
    asking = Asking(round_up(widest, WIDTHS), answer, setting.aware, setting.decode, check, examples, seed)
    return contexts, asking


def _questions(setting: CacheSetting, subject: Subject, example: Example, index: int) -> list[Example]:
    """The example, and as many others with the same context as are wanted, where the task can ask them."""
    drawn = questions_of(subject.task, example, setting.questions, example_rng(0, setting.split, index))
    others = [replace(example, question=question, answer=answer, support=None) for question, answer in drawn[1:]]
    return [example, *others]


def identity(setting: CacheSetting, row: CacheRow, loaded: Pretrained, seed: int) -> dict[str, Any]:
    """Everything that decides a row's numbers but prompts, budgets and the code: fit for json."""
    found = {"method": row.name, "reader": loaded.fingerprint, "dtype": setting.dtype, "decode": setting.decode}
    found["questions"] = setting.questions
    if row.eviction is None:
        return found
    found |= {"aware": setting.aware, "eviction": described(row.eviction)}
    return found | ({"seed": seed} if row.eviction.policy.draws else {})
