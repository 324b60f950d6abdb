"""The table of eviction policies from tasks to its files, on a model in miniature."""

from __future__ import annotations

import argparse
import csv
import json
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments import kv_measure, kv_policies, measure
from experiments.grid import CacheSetting, Method, Table, chosen, parser_of
from experiments.kv_policies import METHODS
from experiments.kv_report import claimed, judged, verdicts
from experiments.measure import Column, Part, Row, measured
from experiments.published import PUBLISHED
from rcp.cli import main as rcp
from rcp.evaluate.cache_reader import SHARES
from rcp.evaluate.cells import read_cell
from rcp.eviction import GLOBAL, POLICIES, UNIFORM, Full, Random
from rcp.eviction.prompt import Eviction
from rcp.types import UserError
from tests.evaluate.own_data import tiny_model

pytestmark = pytest.mark.lax
COUNT, BATCH = 6, 2
TOKENS = 330  # characters: what is read before a question has 193 to 256 of them, one static width
NEEDLE = {"name": "needle", "tokens": TOKENS, "keys": 2}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in miniature, for prompts of more than its 256 characters."""
    folder = tiny_model(tmp_path_factory.mktemp("world") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return folder


def setting(reader: Path, **changes) -> CacheSetting:
    base = CacheSetting("kv_mine", "mine", NEEDLE, str(reader), 50, 32, COUNT, (), (0.5, 0.1))
    return replace(base, **{"batch_size": BATCH, "exact": True, "dtype": "float32", "at": TOKENS, **changes})


def part(setting: CacheSetting, folder: Path, *names: str, flags: tuple[str, ...] = ()) -> Part:
    options: argparse.Namespace = parser_of("mine", "", runs=folder / "runs").parse_args(list(flags))
    options.cells = folder / "cells"
    table = Table("A table", "Of a test.", (setting,), chosen(METHODS, names), costs=False)
    (found,) = measured(table, options, kv_measure.measure_caches)
    return found


def columns(part: Part, name: str) -> dict[str, Column]:
    return next(row for row in part.rows if row.method.name == name).columns


@pytest.fixture(scope="module")
def measuring(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Part, str]:
    """All kinds of rows, and what was printed while they were measured."""
    names = ("full", "none", "shorter", "random", "kvzip", "snapkv+ada", "oracle", "ours")
    with redirect_stdout(StringIO()) as said:
        found = part(setting(reader), tmp_path_factory.mktemp("whole"), *names)
    return found, said.getvalue()


@pytest.fixture(scope="module")
def whole(measuring: tuple[Part, str]) -> Part:
    return measuring[0]


def test_every_row_keeps_exactly_what_was_asked(whole: Part) -> None:
    full = columns(whole, "full")["1"]
    entries = full.context
    np.testing.assert_array_equal(full.kept, entries)
    layers_heads = 2 * 2  # of the model in miniature
    tokens = entries / layers_heads
    for name in ("shorter", "random", "kvzip", "snapkv+ada", "oracle"):
        for rate, column in ((float(key), column) for key, column in columns(whole, name).items()):
            np.testing.assert_array_equal(column.index, np.arange(COUNT))
            np.testing.assert_array_equal(column.context, entries)
            np.testing.assert_array_equal(column.asked, np.maximum(1, np.floor(rate * tokens + 1e-4)) * layers_heads)
            np.testing.assert_array_equal(column.kept, column.asked)
            assert column.bytes is not None and full.bytes is not None
            assert (column.bytes < full.bytes).all() and (column.bytes > 0).all()
    assert (columns(whole, "none")["0"].kept == 0).all()
    for key in ("0.5", "0.1"):
        assert len({tuple(columns(whole, name)[key].nll) for name in ("shorter", "random", "kvzip", "snapkv+ada")}) == 4


def test_the_whole_cache_and_the_whole_prompt_say_the_same(whole: Part, reader: Path, tmp_path: Path) -> None:
    """Question and answer behind the cache of everything, with and without the question in it: one likelihood."""
    aware = part(setting(reader, name="kv_mine_aware", aware=True), tmp_path, "full", "shorter", "random")
    anew = part(setting(reader, keep_rates=(1.0,)), tmp_path, "shorter")
    expected = columns(anew, "shorter")["1"].nll
    np.testing.assert_allclose(columns(whole, "full")["1"].nll, expected, rtol=1e-4)
    np.testing.assert_allclose(columns(aware, "full")["1"].nll, expected, rtol=1e-4)
    column, blind = columns(aware, "random")["0.1"], columns(whole, "random")["0.1"]
    np.testing.assert_array_equal(column.kept, blind.kept)
    assert (column.nll != blind.nll).all(), "what was read of the question by the whole cache is kept"
    for key, column in columns(aware, "shorter").items():  # one cell for both tables, whichever measured it
        np.testing.assert_allclose(column.nll, columns(whole, "shorter")[key].nll, rtol=1e-4)
    assert (tmp_path / "cells" / setting(reader).reader_label / "kv_mine" / "shorter.npz").exists()


def test_a_table_goes_on_where_it_was_stopped(
    whole: Part, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(clock: measure.Clock, method: str, done: int, batches: int) -> None:
        if done == 1:
            raise measure.TimeOver

    names = ("full", "kvzip", "random")
    with monkeypatch.context() as patched:
        patched.setattr(measure.Clock, "watch", stop)
        half = part(setting(reader), tmp_path, *names)
    assert all(row.needs == "needs more time: 1 of 3 batches are measured" and not row.columns for row in half.rows)
    for examples in (4, COUNT):  # first more time, then more examples
        resumed = part(setting(reader, examples=examples), tmp_path, *names)
    for name in names:
        for key, column in columns(resumed, name).items():
            np.testing.assert_array_equal(column.nll, columns(whole, name)[key].nll)
    drawn = part(setting(reader), tmp_path, *names, flags=("--budget-minutes=0",))
    np.testing.assert_array_equal(columns(drawn, "kvzip")["0.1"].nll, columns(resumed, "kvzip")["0.1"].nll)
    cell = read_cell(tmp_path / "cells" / setting(reader).reader_label / "kv_mine" / "kvzip.npz")
    assert cell.identity["eviction"]["policy"] == {"kind": "KVzip", "sinks": 4}


def test_rates_and_prompts_share_compiled_programs(measuring: tuple[Part, str]) -> None:
    """Five evictions, two rates, three batches: each is chosen by one program; the others are a program a capacity."""
    text = measuring[1].partition("compiled programs: ")[2].partition(" ")[2].splitlines()[0]
    counts = json.loads(text.replace("'", '"'))
    assert counts["choose"] <= 5 and counts["read"] <= 1 and counts["repeat"] <= 1
    assert counts["judge"] <= len(SHARES) and counts["compact"] <= len(SHARES) and counts["read anew"] <= 3
    assert "seconds, compilation excluded: reading contexts" in measuring[1]


def test_a_missing_run_says_what_it_needs(whole: Part) -> None:
    (ours,) = (row for row in whole.rows if row.method.name == "ours")
    assert not ours.columns and "rcp train --config=configs/eviction.py" in ours.needs


def test_a_trained_eviction_is_measured_under_each_allotment(
    whole: Part, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for what `load_eviction` gives; contexts are read once, for rows without a run too."""
    monkeypatch.setattr(kv_measure, "trained_eviction", lambda *_: Eviction(Random(), GLOBAL, sinks=4))
    with redirect_stdout(StringIO()) as said:
        found = part(setting(reader), tmp_path, "full", "ours", "ours+uniform")
    assert said.getvalue().count("reading contexts") == 1
    for key, column in columns(found, "ours+uniform").items():
        np.testing.assert_array_equal(column.nll, columns(whole, "random")[key].nll)
        assert (columns(found, "ours")[key].nll != column.nll).any()


def test_a_trained_eviction_keeps_the_sinks_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_measure, "trained_eviction", lambda *_: Eviction(Random(), GLOBAL, sinks=4))
    base = CacheSetting("a", "a", {}, "r", 1, 1, 1, (), sinks=0)
    (method,) = chosen(METHODS, ("ours",))
    row = kv_measure.row_of(base, method, 0, Path("absent"), None, True)  # pyright: ignore[reportArgumentType]
    assert row.eviction == Eviction(Random(), GLOBAL, sinks=0)
    (method,) = chosen(METHODS, ("ours+repacked",))
    row = kv_measure.row_of(base, method, 0, Path("absent"), None, True)  # pyright: ignore[reportArgumentType]
    assert row.eviction == Eviction(Random(), GLOBAL, sinks=0, repack=True)


def test_one_pruned_context_answers_several_questions(whole: Part, reader: Path, tmp_path: Path) -> None:
    several = part(setting(reader, questions=2, examples=BATCH), tmp_path, "full", "oracle")
    full = columns(several, "full")["1"]
    np.testing.assert_array_equal(full.kept, columns(whole, "full")["1"].kept[:BATCH])
    assert (full.nll != columns(whole, "full")["1"].nll[:BATCH]).all()
    assert "one question a context" in several.rows[1].needs
    anew = part(setting(reader, questions=2, examples=BATCH, keep_rates=(1.0,)), tmp_path, "shorter")
    np.testing.assert_allclose(full.nll, columns(anew, "shorter")["1"].nll, rtol=1e-4)


def test_what_a_setting_cannot_be_measured_with_does_not_end_the_table(reader: Path, tmp_path: Path) -> None:
    (row,) = part(setting(reader, keep_rates=(), keep_tokens=(4096, 8192)), tmp_path, "random").rows
    assert "4096 and 8192 both keep 1 of these contexts" in row.needs and not row.columns
    few: Any = SimpleNamespace(encoded=lambda: ["a window"] * 3, tokenizer=None)  # a text ends
    with pytest.raises(UserError, match="--first=9: mine has 3 contexts"):
        kv_measure.prompts_of(setting(reader, first=9), few, 0)


def test_answers_can_be_decoded(reader: Path, tmp_path: Path) -> None:
    found = part(setting(reader, decode=4, examples=BATCH), tmp_path, "full", "none")
    assert all(set(column.em) <= {0.0, 1.0} for row in found.rows for column in row.columns.values())
    assert (tmp_path / "cells" / setting(reader).reader_label / "kv_mine" / "full_decode4.npz").exists()


def made(name: str, full: float, **others: tuple[float, ...]) -> Part:
    """A part of ten examples; of each row the exact match at 25 %."""
    base = CacheSetting(name, f"{name}, 512 tokens", {"name": name}, "r", 1, 1, 10, (), (0.25,), exact=True, at=512)

    def row(method: str, key: str, mean: float) -> Row:
        em = (np.arange(10) < round(10 * mean)).astype(float)
        column = Column(np.arange(10), 1 - em, em, np.full(10, 5.0), np.full(10, 20.0), 0.1, 0.2, np.full(10, 5.0))
        return Row(Method(method, method), {key: column}, (0,))

    return Part(base, (row("full", "1", full), *(row(n, "0.25", v[0]) for n, v in others.items())), ("cpu",))


def test_nothing_is_claimed_where_the_whole_cache_fails() -> None:
    easy, hard = made("easy", 0.9, random=(0.0,), ours=(0.8,)), made("hard", 0.4, random=(0.3,), ours=(0.2,))
    other = made("other", 0.7, random=(0.4,), ours=(0.6,))
    table = Table("T", "About.", (), tuple(row.method for row in easy.rows))
    table, parts = judged(table, [easy, hard, other])
    assert "easy, 512 tokens 0.900; hard, 512 tokens 0.400 (not claimed on)" in table.about
    assert "not claimed on" in parts[1].setting.title and not claimed(parts[1]) and len(parts) == 4
    mean = parts[3]
    assert mean.setting.title == "mean of easy, other, 512 tokens"
    np.testing.assert_allclose(columns(mean, "ours")["0.25"].em.mean(), 0.7)
    assert columns(mean, "ours")["0.25"].bytes is None
    text = verdicts(table, parts, 200)
    assert "| easy, 512 tokens | 0.25 | random 0.000" in text and "| ahead of all, intervals apart |" in text
    assert "hard" not in text and "ahead of all, intervals overlap" in text


def test_the_rows_are_those_of_the_issue() -> None:
    names = [method.name for method in METHODS]
    assert set(POLICIES) | {"none", "shorter", "oracle", "ours"} <= set(names) and len(names) == len(set(names))
    assert {"snapkv+ada", "expected_attention+ada"} <= set(names)
    assert {entry.method for entry in PUBLISHED if entry.dataset == "ruler"} <= set(names)
    base = CacheSetting("a", "a", {}, "r", 1, 1, 1, ())

    def eviction(name: str) -> Eviction:
        (method,) = chosen(METHODS, (name,))
        row = kv_measure.row_of(base, method, 0, Path("absent"), None, False)  # pyright: ignore[reportArgumentType]
        assert row.eviction is not None
        return row.eviction

    assert eviction("kvzip").shared == GLOBAL and eviction("kvzip+uniform").shared == UNIFORM
    assert eviction("kvzip+repacked") == replace(eviction("kvzip"), repack=True)
    assert eviction("kvzip+recent") == replace(eviction("kvzip"), recent=32)
    assert eviction("full") == Eviction(Full(), sinks=4)
    with pytest.raises(UserError, match="a task that knows which segments its answers need"):
        eviction("oracle")


def test_the_command_writes_the_table(reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--readers={reader}", "--dtype=float32", f"--output={tmp_path}", "--examples=2", "--batch-size=2"]
    flags += ["--datasets=single", f"--tokens={TOKENS}", "--keep-rates=0.5,0.1", "--methods=full,random"]
    assert rcp(["tables", "kv_policies", *flags]) == 0
    text = (tmp_path / "kv_policies.md").read_text()
    assert text.index(f"single, {TOKENS} tokens 0.000 (not claimed on)") < text.index("###")
    assert "63 (Llama-3.1-8B, 75 % kept)" in text and "entries asked / kept of" in text
    with (tmp_path / "kv_policies.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["method"] == "random"]
    assert all(line["entries_asked"] == line["tokens_kept"] and float(line["cache_bytes"]) > 0 for line in lines)
    assert "2 of 2 rows are complete" in capsys.readouterr().out
    assert rcp(["tables", "kv_policies", "--question", "--questions=2"]) == 2
    assert "1 question" in capsys.readouterr().err
    assert kv_policies.RATES == (0.75, 0.5, 0.25, 0.1)
