"""The table of gradient estimators, end to end on a tiny problem: files, resumption, errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import estimators, estimators_task
from experiments.estimators_problem import Problem, enumerated
from rcp.config_file import load_config
from rcp.data.pipeline import eval_batches
from tests.evaluate.own_data import ROOT
from tests.sampling import enumeration as exact

TINY = ["--samples=4", "--repeats=200", "--seeds=0", "--tokens=4", "--keep=2", "--large-tokens=0", "--timings=1"]
TINY += ["--temperatures=0.5", "--steps=1", "--task-config="]


@pytest.mark.parametrize("distribution", ["plackett-luce", "conditional-bernoulli"])
def test_the_enumerated_gradient_equals_finite_differences(distribution):
    problem = Problem(5, 2, 0)
    logits, constant, linear, pairs = (np.asarray(array, np.float64) for array in problem.arrays())
    masks = exact.subsets(5, 2).astype(float)
    rewards = constant + masks @ linear + ((masks @ pairs) * masks).sum(-1) / 2
    sets = exact.plackett_luce_sets if distribution == "plackett-luce" else exact.conditional_bernoulli_sets
    expected = exact.gradient(lambda theta: sets(theta, 2) @ rewards, logits)
    np.testing.assert_allclose(enumerated(problem, distribution).gradient, expected, atol=1e-8)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three estimators instead of all: each costs seconds of compilation."""
    kinds = {name: estimators.ESTIMATORS[name] for name in ("reinforce-loo", "conditional-loo", "relaxed-threshold")}
    monkeypatch.setattr(estimators, "ESTIMATORS", kinds)


def test_writes_the_report_and_resumes_cell_by_cell(three, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [f"--output={tmp_path}", *TINY]
    assert estimators.main(arguments) == 0
    first = capsys.readouterr()
    assert "2 of 4 tokens, 4 draws an estimate" in first.out and first.err.count(" s\n") == 3
    cells = sorted((tmp_path / "cells" / "4_2_seed0").iterdir())
    assert [path.name for path in cells] == ["conditional-loo.json", "reinforce-loo.json", "relaxed-threshold_0.5.json"]
    with (tmp_path / "report.csv").open() as file:
        rows = {row["estimator"]: row for row in csv.DictReader(file)}
    assert float(rows["conditional-loo"]["bias"]) < 0.3 and float(rows["conditional-loo"]["cosine_of_mean"]) > 0.9
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.md").read_text().count("| relaxed-threshold 0.5 | PL | no |") == 1
    assert (tmp_path / "report.tex").read_text().rstrip().endswith(r"\end{tabular}")

    assert estimators.main(arguments) == 0  # nothing is computed, the table is the same
    assert capsys.readouterr() == (first.out, "")
    cells[0].write_text(cells[0].read_text()[:100])  # cut off
    stale = json.loads(cells[1].read_text())
    stale["settings"]["repeats"] = 7
    cells[1].write_text(json.dumps(stale))
    assert estimators.main(arguments) == 0
    again = capsys.readouterr().err
    assert "conditional-loo" in again and "reinforce-loo" in again and "relaxed" not in again


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[estimators_task.Task, Path]:
    """That of configs/smoke.py, and the folder that has its reader."""
    folder = tmp_path_factory.mktemp("task")
    return estimators_task.task_of(f"{ROOT}/configs/smoke.py", folder), folder


def test_the_end_task_is_trained_under_each_estimator(
    trained: tuple[estimators_task.Task, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    kinds = {name: estimators.ESTIMATORS[name] for name in ("reinforce-loo", "relaxed-threshold")}
    monkeypatch.setattr(estimators, "ESTIMATORS", kinds)
    (reader,) = trained[1].glob("reader-*")
    shutil.copytree(trained[1], tmp_path / "cells" / "task")
    config = f"--task-config={ROOT}/configs/smoke.py"
    arguments = [f"--output={tmp_path}", *TINY, config, "--task-steps=3", "--task-samples=2", "--task-seeds=0"]
    assert estimators.main(arguments) == 0
    first = capsys.readouterr()
    assert "The end task: smoke, a quarter of the segments kept, 3 steps, 2 draws an estimate, n = 32" in first.out
    with (tmp_path / "task.csv").open() as file:
        rows = {row["estimator"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["random", "needed", "reinforce-loo", "relaxed-threshold 0.5"]
    assert all(0 <= float(row["low"]) <= float(row["exact_match"]) <= float(row["high"]) <= 1 for row in rows.values())
    assert rows["random"]["steps"] == "" and rows["reinforce-loo"]["steps"] == "3"
    cell = json.loads((tmp_path / "cells" / "task" / "seed0" / "reinforce-loo.json").read_text())
    assert len(cell["values"]["rewards"]) == 3 and all(0 < reward < 1 for reward in cell["values"]["rewards"])
    assert (tmp_path / "task.png").read_bytes().startswith(b"\x89PNG")
    assert "## The end task" in (tmp_path / "report.md").read_text()

    assert estimators.main(arguments) == 0  # the reader is not trained again, nor anything else
    assert capsys.readouterr() == (first.out, "")
    kinds.pop("relaxed-threshold")  # each costs seconds of compilation
    other = tmp_path / "smoke.py"
    lines = ["import runpy", "def get_config():", f"    c = runpy.run_path('{ROOT}/configs/smoke.py')['get_config']()"]
    other.write_text("\n".join([*lines, "    c.eval.examples = 16", "    return c", ""]))
    assert estimators.main([f"--task-config={other}" if flag == config else flag for flag in arguments]) == 0
    again = capsys.readouterr()
    assert "n = 16" in again.out and again.err.count(" s\n") == 3  # every cell anew
    assert [path.name for path in (tmp_path / "cells" / "task").glob("reader*")] == [reader.name]  # by the same reader
    assert estimators.main([f"--output={tmp_path}", *TINY, f"--task-config={ROOT}/configs/facts.py"]) == 2
    assert "expected a config of a model from scratch, not smollm2" in capsys.readouterr().err


def test_a_config_is_known_by_what_it_says_and_not_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [f"{ROOT}/configs/chain.py:rl", f"{ROOT}/configs/chain.py:supervised", f"{tmp_path}/chain.py:rl"]
    source = Path(f"{ROOT}/configs/chain.py").read_text()
    (tmp_path / "chain.py").write_text(source.replace('"depth": 3', '"depth": 2'))
    found = [estimators_task.described(path, load_config(path)) for path in paths]
    assert [one["config"] for one in found] == ["chain:rl", "chain:supervised", "chain:rl"]
    assert len({one["fingerprint"] for one in found}) == 3
    larger = load_config(paths[0], ["eval.examples=7", "eval.batch_size=5"])
    assert estimators_task.described(paths[0], larger) == found[0] | {"examples": 7, "batch_size": 5}
    folders = []

    def stopped(stages, config, folder):
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(estimators_task, "run", stopped)
    for path in paths:
        with pytest.raises(KeyboardInterrupt):
            estimators_task.task_of(path, tmp_path)
    assert folders == [tmp_path / f"reader-{one['fingerprint']}" for one in found]


def test_the_gradient_of_the_end_task_is_that_of_the_expected_reward(trained: tuple[estimators_task.Task, Path]):
    """Of one step's logits, against the sum over all sets of the segments that could be drawn."""
    task, _ = trained
    batches, _ = eval_batches(
        task.built.task, task.built.tokenizer, "train", 2, batch_size=2, lengths=(40,), max_segments=8, max_answer=1
    )
    batch = jax.tree.map(jnp.asarray, batches[0])
    logits = np.asarray(estimators_task.logits_of(task, task.scorer, batch))
    there, count = np.isfinite(logits), np.asarray(estimators_task.kept_segments(batch))
    assert (count == np.maximum(there.sum(1) // 4, 1)).all()
    found = estimators_task.gradients(task, jnp.asarray(logits), batch, jax.random.key(0), 4000, name="conditional-loo")
    for row in range(2):
        own = np.flatnonzero(there[row])
        masks = exact.subsets(len(own), int(count[row])).astype(np.float32)
        wide = np.zeros((len(masks), logits.shape[1]), np.float32)
        wide[:, own] = masks
        repeated = jnp.full(len(masks), row)
        one = jax.tree.map(lambda x, rows=repeated: x[rows], batch)
        rewards = 1 / (1 + np.asarray(estimators_task.read(task, one, jnp.asarray(wide)).nll, np.float64))

        def value(theta, rewards=rewards, own=own, row=row):
            return exact.conditional_bernoulli_sets(theta, int(count[row])) @ rewards

        expected = exact.gradient(value, logits[row, own].astype(np.float64))
        np.testing.assert_allclose(found.gradient[row, own], expected, atol=0.1 * np.abs(expected).max() + 1e-6)


def test_a_reference_by_brute_force_agrees_with_enumeration():
    problem = Problem(4, 2, 1)
    values = estimators.referenced(problem, "conditional-bernoulli", 40_000)
    truth = enumerated(problem, "conditional-bernoulli").gradient
    distance = np.sum((np.asarray(values["gradient"]) - truth) ** 2)
    assert distance < values["trace"] + 5 * np.sqrt(2) * values["frobenius"]
    assert 0 < np.sqrt(values["trace"]) < 0.05 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--keep=4", "--keep=4 must be less than the 4 tokens"), ("--samples=1", "--samples must be at least 2")]
    + [
        ("--steps=0", "must be positive"),
        ("--tokens=0", "the 0 tokens"),
        ("--tokens=40", ""),
        ("--seeds=", "--seeds: expected"),
    ],
)
def test_errors_name_the_flag(flag, message, tmp_path, capsys):
    arguments = [f"--output={tmp_path}", *TINY, flag]
    if flag == "--tokens=40":
        arguments, message = [*arguments, "--keep=6"], "ordered draws to enumerate"
    assert estimators.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
