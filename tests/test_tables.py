"""`rcp tables`: a stopped table goes on, rows that cannot be measured say what they need, the files can be read."""

from __future__ import annotations

import argparse
import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import ablations, cot_influx_main, measure, more_candidates, tables
from experiments.grid import Method, Setting, Table, chosen, parser_of
from experiments.measure import Part, measured
from experiments.table_files import FEWER, escaped, write_table
from experiments.table_lines import at, break_even, lines_of, reading_cost
from rcp.cli import main
from rcp.config_file import load_config
from rcp.evaluate.cells import Cell, Piece, read_cell
from rcp.train.build import make_task
from rcp.types import UserError
from tests.evaluate.own_data import ROOT, smaller, tiny_model, write_rows

pytestmark = pytest.mark.lax
ROWS = (
    Method("none", "none"),
    Method("full", "full"),
    Method("shorter", "shorter", about="uncompressed"),
    Method("random", "random"),
    Method("perplexity", "perplexity"),
    Method("perplexity_tokens", "perplexity", granularity="token"),
    Method("ours", "ours", "mine", f"{ROOT}/configs/jsonl.py"),
    Method("drawn", "ours", "mine", f"{ROOT}/configs/jsonl.py", draw="sample"),
    Method("other", "ours", "absent", "configs/jsonl.py", ("--config.train.steps=3",)),
    Method("older", "ours", "older", "configs/jsonl.py:rl", ("--config.scorer.colour=1",)),
    Method("future", "not_yet"),
    Method("fixed", "shorter", task={"test_path": "", "path": "absent.jsonl"}),
)
COUNT = 12


class World:
    """A reader, a file of questions and a trained run, in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.reader = folder, tiny_model(folder / "model")
        self.rows = write_rows(folder / "mine.jsonl")

    def train(self) -> None:
        runs = self.folder / "runs" / f"mine-{self.table().settings[0].reader_label}"
        flags = [f"--config={ROOT}/configs/jsonl.py:supervised", *smaller(self.reader, self.rows)]
        assert main(["train", f"--workdir={runs}", *flags]) == 0

    def table(self, *names: str, **changes: Any) -> Table:
        task = {"name": "jsonl", "path": str(self.rows), "test_path": str(self.rows)}
        setting = Setting("mine", "Mine & yours", task, str(self.reader), 3, 12, COUNT, (8, 16), batch_size=4)
        return Table("A table", "Of a test.", (replace(setting, **changes),), chosen(ROWS, names))

    def options(self, *flags: str) -> argparse.Namespace:
        options = parser_of("mine", "", output=self.folder / "out", runs=self.folder / "runs").parse_args(flags)
        options.cells = options.cells or options.output / "cells"
        return options

    def part(self, *flags: str, names: tuple[str, ...] = (), **changes: Any) -> Part:
        (part,) = measured(self.table(*names, **changes), self.options(*flags))
        return part


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    world.train()
    return world


@pytest.fixture(scope="module")
def part(world: World) -> Part:
    return world.part("--seeds=0,1")


def row(part: Part, name: str) -> measure.Row:
    return next(row for row in part.rows if row.method.name == name)


def piece_of(numbers: list[int], *, nll: float = 1.0) -> Piece:
    """Of problems of these numbers, each of which kept as many tokens as its number and took a second and two."""
    own, one = np.array(numbers), np.ones(len(numbers))
    return Piece(own, one, one, one, own, nll * one, one, None, 1.0 * len(numbers), 2.0 * len(numbers))


def test_rows_are_measured_on_the_same_problems(part: Part) -> None:
    for name in ("none", "full", "shorter", "random", "ours"):
        for column in row(part, name).columns.values():
            np.testing.assert_array_equal(column.index, np.arange(COUNT))
            np.testing.assert_array_equal(column.context, row(part, "full").columns["1"].context)
    assert set(row(part, "random").columns) == {"8 tokens", "16 tokens"}
    np.testing.assert_array_equal(row(part, "random").columns["8 tokens"].kept, 8)
    assert row(part, "random").seeds == (0, 1) and row(part, "shorter").seeds == (0,)


def test_a_policy_can_have_a_row_of_segments_and_one_of_tokens(world: World, part: Part) -> None:
    rows = [row(part, name) for name in ("perplexity", "perplexity_tokens")]
    for method, granularity in zip(rows, ("segment", "token")):
        path = measure.cell_path(world.options().cells, part.setting, method.method, 0)
        assert read_cell(path).identity["granularity"] == granularity
    whole, tokens = (method.columns["8 tokens"] for method in rows)
    np.testing.assert_array_equal(whole.kept, tokens.kept)
    assert np.all(np.abs(whole.nll - tokens.nll) > 1e-6)


def test_what_cannot_be_measured_says_what_it_needs(world: World, part: Part) -> None:
    runs, label = world.folder / "runs", part.setting.reader_label
    command = f"rcp train --config=configs/jsonl.py --workdir={runs}/absent-{label} --config.train.steps=3"
    assert row(part, "other").needs.startswith(f"needs a trained run: {command} --config.model.name={world.reader}")
    assert f"--workdir={runs}/absent-{label}_seed1" in row(part, "other").needs
    assert "what this version cannot train: unknown config key config.scorer.colour" in row(part, "older").needs
    assert "'not_yet', which this version does not have" in row(part, "future").needs
    assert "absent.jsonl" in row(part, "fixed").needs
    assert 'should be "budget" unless budget.granularity is "independent"' in row(part, "drawn").needs
    assert not any(row(part, name).columns for name in ("other", "older", "future", "fixed"))
    assert row(part, "ours").seeds == (0,) and "mine-" in row(part, "ours").needs, "the run of seed 1 is not there"
    assert row(part, "ours").needs.startswith("seed 1: needs a trained run: ")
    away = world.part("--budget-minutes=0", names=("random",), reader="owner/nowhere")
    assert "owner/nowhere" in row(away, "random").needs


def test_the_files_can_be_read(world: World, part: Part, capsys: pytest.CaptureFixture[str]) -> None:
    table = world.table()
    write_table("mine", table, [part], world.folder / "out", 200)
    out = world.folder / "out"
    with (out / "mine.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["method"] for line in lines} == {method.name for method in ROWS}
    by = {(line["method"], line["budget"]): line for line in lines}
    found, ours = by["random", "8 tokens"], by["ours", "8 tokens"]
    assert float(found["low"]) <= float(found["value"]) <= float(found["high"])
    difference = float(ours["value"]) - float(found["value"])
    assert float(found["difference"]) == pytest.approx(difference, abs=1e-4)
    assert ours["difference"] == "" and by["other", ""]["needs"].startswith("needs a trained run")
    assert by["full", "8 tokens"]["tokens_kept"] == by["full", "16 tokens"]["tokens_kept"]
    text = (out / "mine.md").read_text()
    assert "| **ours** |" in text and "- other: needs a trained run: rcp train" in text and "- shorter: uncompr" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    tex = (out / "mine.tex").read_text()
    plain = tex.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}") and plain.count(r"\begin{tabular}") == plain.count(r"\end{tabular}") > 0
    assert "Mine & yours" not in "".join(line for line in tex.splitlines() if not line.startswith("%"))
    assert (out / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert "ours less each" in capsys.readouterr().out


def test_what_is_missing_is_said_of_the_budget_that_misses_it() -> None:
    assert measure.time_needed({"8 tokens": 3, "16 tokens": 3}, 3) == ""
    assert measure.time_needed({"8 tokens": 3, "16 tokens": 1}, 3).endswith("1 of 3 batches are measured at 16 tokens")
    assert measure.time_needed({"8 tokens": 0, "16 tokens": 1}, 3).endswith("0 of 3 batches are measured")
    first = {key: [piece_of(list(range(32)))] for key in ("8 tokens", "16 tokens")}
    needs = measure.time_needed({"8 tokens": 0, "16 tokens": 3}, 3, first)
    assert needs.endswith("the first 32 problems are measured at 8 tokens")


def test_a_table_goes_on_where_it_was_stopped(
    world: World, part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(clock: measure.Clock, method: str, done: int, batches: int) -> None:
        if (method, done) == ("random", 1):
            raise measure.TimeOver

    names = ("full", "shorter", "random")
    with monkeypatch.context() as patched:
        patched.setattr(measure.Clock, "watch", stop)
        half = world.part(f"--cells={tmp_path}", names=names)
    assert row(half, "random").needs == "needs more time: 1 of 3 batches are measured" and row(half, "shorter").columns
    assert not row(half, "random").columns

    def interrupt(clock: measure.Clock, method: str, done: int, batches: int) -> None:
        if (method, done) == ("random", 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measure.Clock, "watch", interrupt)
        assert row(world.part(f"--cells={tmp_path}", names=names), "random").needs.endswith(
            "2 of 3 batches are measured"
        )
    assert "the table shows what there is" in capsys.readouterr().out
    whole = world.part(f"--cells={tmp_path}", names=names)
    for name in names:
        for key, column in row(whole, name).columns.items():
            if name != "random":
                np.testing.assert_array_equal(column.nll, row(part, name).columns[key].nll)
    again = world.part(f"--cells={tmp_path}", "--budget-minutes=0", names=names)
    for name in names:
        assert not row(again, name).needs
        for key, column in row(again, name).columns.items():
            np.testing.assert_array_equal(column.nll, row(whole, name).columns[key].nll)
            assert column.model_seconds == row(whole, name).columns[key].model_seconds, "read, not measured again"


def test_the_time_left_is_that_of_the_prompts_at_hand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same method on two settings, the second four times as fast; the first batch of each compiles."""
    now = 0.0
    monkeypatch.setattr(measure.time, "monotonic", lambda: now)
    clock = measure.Clock(None)
    for compiling, each in ((90.0, 60.0), (45.0, 15.0)):
        for done in range(5):
            clock.watch("ours", done, 4)
            now += each if done else compiling
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "3 of 4" in line] == [
        "  ours: 3 of 4 batches, 60.00 s each, 1.0 min left",
        "  ours: 3 of 4 batches, 15.00 s each, 0.2 min left",
    ]


def test_a_stale_cell_is_measured_again(world: World, part: Part, tmp_path: Path) -> None:
    (folder,) = (world.folder / "out" / "cells").iterdir()
    shutil.copytree(folder, tmp_path / folder.name)
    path = tmp_path / folder.name / "mine" / "shorter.npz"
    cell = read_cell(path)
    cell.identity = {**cell.identity, "reader": "another"}
    cell.save()
    flags = (f"--cells={tmp_path}", "--budget-minutes=0")
    stale = world.part(*flags, names=("shorter", "full"))
    assert (
        row(stale, "shorter").needs == "needs more time: 0 of 3 batches are measured" and not row(stale, "full").needs
    )
    again = world.part(flags[0], names=("shorter", "full"))
    np.testing.assert_array_equal(
        row(again, "shorter").columns["8 tokens"].nll, row(part, "shorter").columns["8 tokens"].nll
    )


def test_cells_are_drawn_without_the_reader(world: World, part: Part, tmp_path: Path) -> None:
    (folder,) = (world.folder / "out" / "cells").iterdir()
    shutil.copytree(folder, tmp_path / "owner-nowhere")
    away = world.part(f"--cells={tmp_path}", names=("random", "none"), reader="owner/nowhere")
    np.testing.assert_array_equal(row(away, "none").columns["0"].nll, row(part, "none").columns["0"].nll)
    assert row(away, "random").needs.startswith("as it was stored; to measure it: ")


def test_the_break_even_length_is_where_both_cost_the_same(world: World, part: Part) -> None:
    def timed(name: str, prune: float, read: float) -> measure.Row:
        found = row(part, name)
        columns = {
            key: replace(
                column, prune_seconds=prune, model_seconds=read, kept=np.full(COUNT, {"full": 100.0}.get(name, 20))
            )
            for key, column in found.columns.items()
        }
        return replace(found, columns=columns)

    rows = (timed("full", 0.0, 1.25), timed("none", 0.0, 0.25), timed("random", 0.3, 0.45))
    made = replace(part, rows=rows)
    cost = reading_cost(made)
    assert cost == pytest.approx(0.01)
    even = break_even(rows[2].columns["8 tokens"], cost)
    assert even == pytest.approx(20 + 30)
    line = next(line for line in lines_of(world.table(), made, 10) if line.method == "random")
    assert line.break_even == even
    assert reading_cost(replace(part, rows=rows[1:])) is None
    other = replace(rows[0], method=replace(rows[0].method, name="other", task={"shots": 2}))
    assert reading_cost(replace(part, rows=(*rows, replace(other, columns=rows[1].columns)))) == cost
    assert reading_cost(replace(part, rows=(other, *rows[1:]))) is None, "the contexts are not the table's"


def test_problems_may_begin_at_a_later_one(world: World, part: Part, tmp_path: Path) -> None:
    later = world.part(f"--cells={tmp_path}", names=("random", "ours"), first=3, examples=5)
    assert ", from problem 3 on, " in later.setting.heading
    for name in ("random", "ours"):
        found, whole = (row(of, name).columns["8 tokens"] for of in (later, part))
        np.testing.assert_array_equal(found.index, np.arange(3, 8))
        if name == "ours":  # random has another draw in a second seed
            np.testing.assert_allclose(found.nll, whole.nll[3:8], rtol=1e-4)


def test_the_first_problems_of_an_unfinished_cell_are_a_row() -> None:
    setting = Setting("mine", "", {}, "", 1, 1, 80, (8,))

    def first(*pieces: list[int], known: dict[int, tuple[int, int]] | None = None, **changes: Any) -> list[int]:
        cell = Cell(pieces={("8 tokens", str(i)): piece_of(numbers) for i, numbers in enumerate(pieces)})
        found = measure.first_of(cell, replace(setting, **changes), known)
        if not found:
            return []
        column = measure.column_of([found["8 tokens"]])
        assert (column.prune_seconds, column.model_seconds) == (1.0, 2.0)
        np.testing.assert_array_equal(column.kept, column.index)
        return column.index.tolist()

    few, others = list(range(40)), [41, 3, 77, 40, 5]
    assert first(few) == few and first(few[::2], few[1::2]) == few
    assert first(few, others) == list(range(42)), "once each, as far as there is no gap"
    assert first(few[:31]) == [] and first(others) == []
    sizes = dict.fromkeys(range(80), (1, 1))
    assert first(few, others, known=sizes | {36: (2, 1)}) == few[:36], "of another prompt"
    assert first(few[:5], examples=5) == few[:5] and first([9, 8, 7], few[:5], first=7, examples=3) == [7, 8, 9]


def test_a_seed_of_other_examples_is_left_out() -> None:
    whole, few = [piece_of([0, 2]), piece_of([1])], [piece_of([0, 1], nll=9.0)]
    found = measure.alike({0: {"8 tokens": few}, 1: {"8 tokens": whole}, 2: {"8 tokens": whole[::-1]}, 3: {}})
    assert list(found) == [1, 2]
    column = measure.column_of([own["8 tokens"] for own in found.values()])
    assert column.index.tolist() == [0, 1, 2] and column.nll.tolist() == [1.0, 1.0, 1.0]
    assert measure.alike({}) == {}


def test_a_row_of_fewer_problems_says_so_and_is_compared_on_them(world: World, part: Part, tmp_path: Path) -> None:
    few, whole = row(part, "random"), row(part, "ours")
    chosen_rows = np.array([4, 0, 1])

    def cut(column: measure.Column) -> measure.Column:
        arrays = {name: getattr(column, name)[chosen_rows] for name in ("index", "nll", "em", "kept", "context")}
        return replace(column, **arrays)

    few = replace(few, columns={key: cut(column) for key, column in few.columns.items()})
    made, table = replace(part, rows=(row(part, "none"), few, whole)), world.table("none", "random", "ours")
    by = {(line.method, line.budget): line for line in lines_of(table, made, 200)}
    line, other = by["random", "8 tokens"], by["none", "8 tokens"]
    theirs, mine = few.columns["8 tokens"].nll, whole.columns["8 tokens"].nll
    assert (line.n, line.difference_n, other.n, other.difference_n) == (3, 3, COUNT, COUNT)
    assert line.difference == pytest.approx(mine[chosen_rows].mean() - theirs.mean(), abs=1e-12)
    write_table("mine", table, [made], tmp_path, 200)
    text = (tmp_path / "mine.md").read_text()
    random_lines = [line for line in text.splitlines() if line.startswith("| random |")]
    assert f"n = {COUNT}\n" in text and FEWER in text and len(random_lines) == 3
    assert all(line.count("(n = 3)") == 2 for line in random_lines) and text.count("(n = 3)") == 6
    apart = replace(made, rows=(few, replace(whole, columns={"8 tokens": moved(whole.columns["8 tokens"])})))
    assert next(line for line in lines_of(table, apart, 10) if line.method == "random").difference is None


def moved(column: measure.Column) -> measure.Column:
    """Of other problems."""
    return replace(column, index=column.index + 1000)


def test_without_a_name_the_tables_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["tables"], ["tables", "cot_influx"]):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert all(name in err for name in tables.TABLES)
    assert "no table 'cot_influx'" in err
    assert main(["tables", "same_budget", "--methods=none,nobody"]) == 2
    assert "--methods: no row 'nobody'; expected some of none,full," in capsys.readouterr().err


def test_every_table_has_random_the_shorter_prompt_and_ours() -> None:
    for methods in (cot_influx_main.METHODS, ablations.METHODS, chosen(cot_influx_main.METHODS, more_candidates.ROWS)):
        names = [method.name for method in methods]
        assert {"none", "random", "shorter", "ours"} <= set(names) and len(names) == len(set(names))
    with pytest.raises(UserError, match="no row 'nobody'"):
        chosen(ablations.METHODS, ("nobody",))


def test_every_ablation_can_be_trained_as_its_row_says() -> None:
    for method in ablations.METHODS:
        if method.config:
            make_task(load_config(f"{ROOT}/{method.config}", method.flags))


def test_a_method_without_a_budget_stands_at_every_one(part: Part) -> None:
    budgetless = {method.name: method.single for method in ROWS if method.single is not None}
    assert budgetless == {"none": "0", "full": "1", "drawn": "1"}
    column = row(part, "random").columns["8 tokens"]
    drawn = replace(row(part, "drawn"), columns={"1": column})
    assert at(drawn, "8 tokens") is at(drawn, "16 tokens") is column
    assert at(row(part, "random"), "1") is None


def test_signs_of_latex_are_escaped() -> None:
    assert escaped(r"a_b & 5% {x} \y ~ ^") == (
        r"a\_b \& 5\% \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{}"
    )
