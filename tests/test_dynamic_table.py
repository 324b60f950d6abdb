"""The table `dynamic_pruning`, on a run in miniature."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from experiments import dynamic_pruning
from rcp.infer.trained_dynamic import load_dynamic
from rcp.train.build import stages_of
from rcp.train.loop import run
from rcp.types import UserError
from tests.train.test_dynamic import config_of

pytestmark = pytest.mark.lax
TOKENS, CHUNK = 32, 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    config = config_of(folder, train={"steps": 2})
    run(stages_of(config), config, folder / "dynamic")
    return folder


def test_measured_once_and_what_each_point_is(runs, tmp_path, monkeypatch):
    flags = [f"--runs={runs}", f"--output={tmp_path}", "--dtype=float32", "--windows=3", f"--tokens={TOKENS}"]
    flags += [f"--chunk={CHUNK}", "--batch-size=2", "--sizes=24,8", "--shifts=50,-50", "--methods=sinks_window,keydiff"]
    assert dynamic_pruning.main(flags) == 0
    kept = tmp_path / "cells" / "dynamic_pruning.jsonl"
    cells = [json.loads(line) for line in kept.read_text().splitlines()]
    found = {(c["identity"]["method"], c["identity"]["size"], c["identity"]["shift"]): c for c in cells}
    assert len(found) == len(cells) == 1 + 2 * 2 + 2
    full = found["full", 0, 0.0]
    trained = load_dynamic(runs / "dynamic", dtype="float32")
    windows = dynamic_pruning.windows_of(trained, 3, TOKENS)
    logits = np.asarray(trained.model(windows), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(log_probs[:, :-1], windows[:, 1:, None], axis=2)[..., 0].mean(axis=1)
    np.testing.assert_allclose(full["nll"], expected, atol=1e-4)
    np.testing.assert_allclose(found["dynamic", 0, 50.0]["nll"], expected, atol=1e-4)  # nothing is dropped
    assert found["dynamic", 0, 50.0]["dropped"] == [0] * 3 and found["dynamic", 0, -50.0]["dropped"] == [1] * 3
    starts = np.arange(TOKENS) // CHUNK * CHUNK
    for size in (24, 8):  # what a cache of so many entries shows, chunk by chunk
        share = 1 - (np.minimum(starts, size) + np.arange(TOKENS) % CHUNK).sum() / np.arange(TOKENS).sum()
        np.testing.assert_allclose(found["keydiff", size, 0.0]["dropped"], share, rtol=1e-6)
    with (tmp_path / "dynamic_pruning.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["full", *["sinks_window"] * 2, *["keydiff"] * 2, *["dynamic"] * 2]
    assert all(float(row["low"]) <= float(row["difference"]) <= float(row["high"]) for row in rows)
    monkeypatch.setattr(dynamic_pruning, "measure", lambda *_: pytest.fail("measured again"))
    assert dynamic_pruning.main(flags) == 0 == dynamic_pruning.main([*flags, "--minutes=0"])
    assert (tmp_path / "dynamic_pruning.png").exists() and "| **dynamic** |" in (
        tmp_path / "dynamic_pruning.md"
    ).read_text()


def test_what_makes_no_sense_is_refused(runs, tmp_path):
    flags = [f"--runs={runs}", f"--output={tmp_path}"]
    with pytest.raises(UserError, match="'kvzip' cannot read a stream"):
        dynamic_pruning.main([*flags, "--methods=kvzip"])
    with pytest.raises(UserError, match="expected a multiple of --chunk, 16"):
        dynamic_pruning.main([*flags, "--tokens=40"])
    with pytest.raises(UserError, match="--sizes=2: expected at least 4"):
        dynamic_pruning.main([*flags, "--sizes=16,2", "--minutes=0"])
    with pytest.raises(UserError, match="--windows=999: the test split has"):
        dynamic_pruning.main([*flags, "--windows=999", f"--tokens={TOKENS}"])
    with pytest.raises(UserError, match="holds no run"):
        dynamic_pruning.main([f"--runs={tmp_path}", f"--output={tmp_path}"])
