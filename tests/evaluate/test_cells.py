"""Cells: what was found is not computed again, and put together it is what one sweep finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rcp.evaluate.cells import Cell, digest, gather, open_cell, read_cell
from rcp.evaluate.reading import Reader
from rcp.evaluate.results import Results
from rcp.evaluate.sweep import sweep
from rcp.policies import Bm25, First, Full, Policy, Random
from tests.evaluate.known import COUNT, ROWS, TOKENIZER, batches, read

pytestmark = pytest.mark.lax
POLICIES = (Full(), First(), Random(), Bm25(TOKENIZER.decode))
UNTIMED = [entry.name for entry in fields(Results) if entry.name not in ("prune_seconds", "model_seconds", "compiles")]


class Counted:
    """A reader that counts what is read, and cells in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.said, self.done = folder, [], []

    def cell_of(self, policy: Policy, **identity: Any) -> Cell:
        return open_cell(self.folder / f"{policy.name}.npz", {"method": policy.name, **identity})

    def watch(self, method: str, done: int, count: int) -> None:
        self.done.append((method, done, count))

    def __call__(self, policies: tuple[Policy, ...] = POLICIES, **options: Any) -> Results:
        self.said, self.done = [], []
        options = {"keep_rates": (0.5, 0.25), "shown": 3, "cell_of": self.cell_of, "watch": self.watch} | options
        reader = Reader(read, {"cost": jnp.float32(0.5)})
        given = options.pop("batches", None) or batches()
        return sweep(given, policies, reader, granularity="segment", progress=self.said.append, **options)


def assert_same(one: Results, other: Results) -> None:
    for name in UNTIMED:
        mine, theirs = getattr(one, name), getattr(other, name)
        if name == "shown":
            assert [shown.index for shown in mine] == [shown.index for shown in theirs]
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a.keep, b.keep)
        elif isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
            assert mine.dtype == theirs.dtype, name
        else:
            assert mine == theirs, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counted, Results]:
    run = Counted(tmp_path_factory.mktemp("whole"))
    return run, run()


def test_a_stopped_sweep_goes_on_within_the_method(whole: tuple[Counted, Results], tmp_path: Path) -> None:
    run = Counted(tmp_path)

    def stop(method: str, done: int, count: int) -> None:
        run.watch(method, done, count)
        if (method, done) == ("random", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(watch=stop)
    assert run.done[-2:] == [("random", 0, 2), ("random", 1, 2)]
    assert_same(run(), whole[1])
    assert run.done == [("random", 1, 2), ("random", 2, 2), *(("bm25", done, 2) for done in range(3))]
    assert any(line.startswith("random: 1 of 2 batches are in ") for line in run.said)


def test_finished_cells_are_read_and_a_method_or_a_budget_is_added(whole: tuple[Counted, Results]) -> None:
    run, results = whole
    again = run()
    assert_same(again, results)
    assert (run.done, again.compiles) == ([], 0)
    np.testing.assert_array_equal(again.prune_seconds, results.prune_seconds)
    more = run(keep_rates=(0.75, 0.5, 0.25))
    assert {method for method, _, _ in run.done} == {"first", "random", "bm25"}, "full has no budget"
    rows = [more.settings.index(setting) for setting in results.settings]
    np.testing.assert_array_equal(more.nll[rows], results.nll)


def test_more_examples_compute_only_the_new_batches(tmp_path: Path) -> None:
    run = Counted(tmp_path)
    run((First(),), batches=batches()[:1])
    assert run.done == [("first", 0, 1), ("first", 1, 1)]
    assert len(run((First(),)).index) == COUNT
    assert run.done == [("first", 1, 2), ("first", 2, 2)]


def test_a_stale_cell_is_computed_again_and_says_why(whole: tuple[Counted, Results], tmp_path: Path) -> None:
    run = Counted(tmp_path)
    run((Random(),))
    run((Random(),), cell_of=lambda policy: run.cell_of(policy, seed=1))
    assert "random.npz is stale: seed was None and is 1; measured anew" in run.said[0] and len(run.done) == 3
    for seed in (None, 1):  # what was set aside is found again, and nothing is measured
        run((Random(),), cell_of=lambda policy, seed=seed: run.cell_of(policy, **({"seed": seed} if seed else {})))
        assert "2 of 2 batches are in" in run.said[0] and not run.done
    (tmp_path / "random.npz").write_bytes(b"PK\x03\x04 half of a file")
    assert_same(run((Random(),)), Counted(tmp_path / "new")((Random(),)))
    assert "random.npz cannot be read" in run.said[0] and len(run.done) == 3
    changed = batches()
    changed[0].tokens[0, 1] += 1
    run((Random(),), batches=changed)
    assert run.done == [("random", 1, 2), ("random", 2, 2)], "a changed prompt is another batch"


def test_methods_measured_apart_are_one_sweep_together(whole: tuple[Counted, Results], tmp_path: Path) -> None:
    run, (_, results) = Counted(tmp_path), whole
    for policy in reversed(POLICIES):
        run((policy,), shown=0)
    names = [digest(batch) for batch in batches()]
    keys = {0.5: "0.5", 0.25: "0.25", 1.0: "1"}
    columns = {
        (method, rate): read_cell(tmp_path / f"{method}.npz").column(keys[rate], names)
        for method, rate in results.settings
    }
    found: dict[Any, Any] = {setting: pieces for setting, pieces in columns.items() if pieces is not None}
    assert found.keys() == columns.keys()
    joined = gather(found)
    for name in ("settings", "index", "context", "answer_tokens", "kept", "nll", "em"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(results, name))


def test_masks_are_kept_only_where_they_are_shown(tmp_path: Path) -> None:
    run = Counted(tmp_path)
    run((First(),), shown=0)
    assert all(piece.keep is None for piece in read_cell(tmp_path / "first.npz").pieces.values())
    assert len(run((First(),), shown=ROWS).shown) == ROWS
    assert run.done == [("first", 1, 2), ("first", 2, 2)], "the first batch again, with masks"
    masks = [piece.keep is not None for piece in read_cell(tmp_path / "first.npz").pieces.values()]
    assert masks == [True, True, False, False]


def test_a_file_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Counted(tmp_path)
    run((First(),), batches=batches()[:1])
    before = (tmp_path / "first.npz").read_bytes()

    def fails(*arguments: Any, **options: Any) -> None:
        arguments[0].write(b"half")
        raise OSError("disk full")

    save: Callable[..., None] = np.savez_compressed
    monkeypatch.setattr(np, "savez_compressed", fails)
    with pytest.raises(OSError, match="disk full"):
        run((First(),))
    assert (tmp_path / "first.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(np, "savez_compressed", save)
    run((First(),))
    assert run.done == [("first", 1, 2), ("first", 2, 2)]
