"""Runs that are interrupted end like runs left alone; runs that go wrong say how."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from rcp.config import Config, EvalConfig, OptimConfig, ParallelConfig
from rcp.config_file import from_dict, load_config
from rcp.config_saved import save_config
from rcp.train.loop import _reached, restore, run
from rcp.types import UserError

from .toy import ToyPipeline, toy_config, toy_stages

TOY = Path(__file__).parent / "toy.py"
ROOT = Path(__file__).parents[2]


def steps_logged(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def one_device(steps: int = 20) -> Config:
    """The loop is the same for eight, and slower to test."""
    return replace(toy_config(steps), parallel=ParallelConfig(devices=1))


def weights(result) -> np.ndarray:
    return result.state.params["pruner"]["w"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run nobody disturbs."""
    workdir = tmp_path_factory.mktemp("alone")
    return run(toy_stages(), one_device(), workdir), workdir


def test_stages_run_in_order_and_every_step_is_logged_once(alone):
    result, workdir = alone
    assert result.finished
    assert (result.stage, result.step) == ("pruner", 20)
    assert steps_logged(workdir) == list(range(1, 31))
    stages = [json.loads(line)["stage"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["reader"] * 10 + ["pruner"] * 20


def test_trained_params_carry_over_as_frozen_values(alone):
    result, workdir = alone
    state, frozen = restore(toy_stages(), one_device(), workdir)
    np.testing.assert_array_equal(state.params["pruner"]["w"], weights(result))
    other, _ = restore(toy_stages()[:1], one_device(), workdir)
    np.testing.assert_allclose(frozen["scale"], np.abs(other.params["model"]["w"]).sum(), rtol=1e-6)


class Interrupt:
    """Makes a stage's pipeline call `action` (raise, or send a signal) when it is asked for batch number `at`."""

    def __init__(self, at: int, action):
        self.at, self.action = at, action

    def wrap(self, stage):
        make = stage.make_pipeline
        outer = self

        class Interrupted(ToyPipeline):
            def __next__(self):
                if self.count == outer.at:
                    outer.action()
                return super().__next__()

        def wrapped():
            pipeline = make()
            pipeline.__class__ = Interrupted
            return pipeline

        return replace(stage, make_pipeline=wrapped)


@pytest.mark.parametrize(("stage", "at"), [(0, 3), (0, 7), (1, 0), (1, 4), (1, 5), (1, 6), (1, 19)])
def test_a_run_that_crashes_anywhere_goes_on_to_the_same_end(stage, at, alone, tmp_path):
    def crash():
        raise RuntimeError("power cut")

    stages = toy_stages()
    stages[stage] = Interrupt(at, crash).wrap(stages[stage])
    with pytest.raises(RuntimeError, match="power cut"):
        run(stages, one_device(), tmp_path)
    result = run(toy_stages(), one_device(), tmp_path)
    assert np.abs(weights(result) - weights(alone[0])).max() == 0
    assert steps_logged(tmp_path) == list(range(1, 31))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("stage", "at"), [(0, 3), (1, 7)])
def test_a_signal_saves_a_checkpoint_and_ends_cleanly(number, stage, at, alone, tmp_path):
    before = signal.getsignal(number)
    stages = toy_stages()
    stages[stage] = Interrupt(at, lambda: os.kill(os.getpid(), number)).wrap(stages[stage])
    stopped = run(stages, one_device(), tmp_path)
    assert not stopped.finished
    assert stopped.signal == number
    assert signal.getsignal(number) is before
    assert (tmp_path / "checkpoints" / stopped.stage / str(stopped.step)).exists()
    assert steps_logged(tmp_path)[-1] == stopped.step + 10 * stage
    result = run(toy_stages(), one_device(), tmp_path)
    assert np.abs(weights(result) - weights(alone[0])).max() == 0
    assert steps_logged(tmp_path) == list(range(1, 31))


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_a_run_on_eight_devices_resumes_exactly_too(mode, tmp_path):
    config = toy_config(6, every=2)
    config = replace(config, parallel=ParallelConfig(mode=mode))
    whole = run(toy_stages(2, 6), config, tmp_path / "whole")
    stages = toy_stages(2, 6)
    stages[1] = Interrupt(5, lambda: 1 / 0).wrap(stages[1])
    with pytest.raises(ZeroDivisionError):
        run(stages, config, tmp_path / "cut")
    result = run(toy_stages(2, 6), config, tmp_path / "cut")
    assert np.abs(weights(result) - weights(whole)).max() == 0


@pytest.mark.parametrize("parallel", [ParallelConfig(devices=8), ParallelConfig(mode="mesh", devices=2)])
def test_a_run_may_go_on_with_other_devices(parallel, alone, tmp_path):
    stages = toy_stages()
    stages[1] = Interrupt(7, lambda: 1 / 0).wrap(stages[1])
    with pytest.raises(ZeroDivisionError):
        run(stages, one_device(), tmp_path)
    result = run(toy_stages(), replace(one_device(), parallel=parallel), tmp_path)
    np.testing.assert_allclose(weights(result), weights(alone[0]), rtol=1e-4, atol=1e-6)
    assert steps_logged(tmp_path) == list(range(1, 31))


def test_other_weights_under_the_same_name_are_refused(tmp_path):
    def stages(weights: str):
        return [replace(stage, weights=weights) for stage in toy_stages(2, 2)]

    run(stages("one"), one_device(2), tmp_path)
    for act in (run, restore):
        act(stages("one"), one_device(2), tmp_path)
        with pytest.raises(UserError, match="trained on other weights"):
            act(stages("two"), one_device(2), tmp_path)


def test_a_finished_run_started_again_does_nothing(alone):
    result, workdir = alone
    again = run(toy_stages(), one_device(), workdir)
    assert again.finished
    np.testing.assert_array_equal(weights(again), weights(result))
    assert steps_logged(workdir) == list(range(1, 31))


def test_a_longer_run_goes_on_from_a_shorter_one(alone, tmp_path, capsys):
    """The toy's rate is constant; that of a schedule jumps, which is said once."""
    constant = [replace(one_device(steps), optim=OptimConfig(schedule="constant")) for steps in (6, 8)]
    for config in constant:
        run(toy_stages(second=config.train.steps), config, tmp_path / "constant")
    run(toy_stages(second=12), one_device(steps=12), tmp_path)
    assert "jumps" not in capsys.readouterr().err
    result = run(toy_stages(), one_device(), tmp_path)
    said = capsys.readouterr().err
    assert (
        "pruner: config.train.steps was 12 and is 20." in said
        and "jumps up where the run goes on, after step 12" in said
    )
    run(toy_stages(), one_device(), tmp_path)
    assert "jumps" not in capsys.readouterr().err
    assert np.abs(weights(result) - weights(alone[0])).max() == 0
    assert steps_logged(tmp_path) == list(range(1, 31))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"objectives": {"entropy": {"schedule": "linear"}, "nll": {"schedule": "cosine", "steps": 5}, "kl": 1.0}},
            'The weight of config.objectives.entropy (schedule "linear", steps 0) changes over all of them',
        ),
        ({"dynamic": {"on": True}}, "The growth of alpha (config.dynamic.alpha_steps 0) changes over all of them"),
        ({"dynamic": {"on": True, "alpha_steps": 5}, "objectives": {"entropy": {"schedule": "linear"}}}, ""),
    ],
)
def test_what_else_runs_over_all_steps_of_a_longer_run_is_said(sections, said, tmp_path, capsys):
    def config(steps: int) -> Config:
        train, optim = {"steps": steps, "checkpoint_every": 5}, {"schedule": "constant"}
        return from_dict({"train": train, "optim": optim, "parallel": {"devices": 1}, **sections})

    run(toy_stages(2, 4), config(4), tmp_path)
    assert "changes over" not in capsys.readouterr().err
    run(toy_stages(2, 6), config(6), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "config.train.steps was 4 and is 6." in line]
    assert len(lines) == bool(said)
    assert all(said in line and "after step 4" in line and "objectives.nll" not in line for line in lines)
    assert all("learning rate" not in line for line in lines)


def test_a_stage_that_has_to_be_trained_anew_leaves_those_behind_it(alone, tmp_path):
    """Its folder deleted, as the message for one that cannot be read says."""
    shutil.copytree(alone[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "reader")
    result = run(toy_stages(), one_device(), tmp_path / "run")
    np.testing.assert_array_equal(weights(result), weights(alone[0]))
    assert sorted(steps_logged(tmp_path / "run")) == list(range(1, 31))


def test_what_is_kept_of_the_metrics_ends_with_the_checkpoints(alone, tmp_path):
    """TensorBoard drops what is behind; a stage that has not begun has nothing to keep."""
    assert _reached(toy_stages(), alone[1]) == {"reader": 10, "pruner": 30}
    run([replace(toy_stages()[0], steps=5)], one_device(), tmp_path)
    assert _reached(toy_stages(), tmp_path) == {"reader": 5}


def test_a_stage_of_another_length_is_not_taken_over(tmp_path):
    def stages(first: int):
        return [replace(stage, decides=lambda c: c) if stage.name == "reader" else stage for stage in toy_stages(first)]

    run(stages(8), one_device(8), tmp_path / "other")
    for steps in (5, 15):
        with pytest.raises(UserError, match=f"reader: config.train.steps: 8 there, {steps} now"):
            run(stages(steps), one_device(steps), tmp_path / "run", prepared=tmp_path / "other")


def test_what_a_later_stage_goes_on_from_does_not_grow(tmp_path):
    """The trained scorer of the first stage of learned eviction, whose steps are `train.steps`."""
    eviction = {"tasks": {"needle": {"name": "needle"}}, "objectives": {"golden": 1.0}, "answer_steps": 3}
    eviction["answer_objectives"] = {"likelihood": 1.0}
    short, long = (from_dict({"train": {"steps": steps}, "eviction": eviction}) for steps in (5, 9))
    save_config(short, tmp_path)
    with pytest.raises(UserError, match=r"config.train.steps: 5 there, 9 now \(may not change where a stage with"):
        save_config(long, tmp_path)
    alone = replace(long, eviction=replace(long.eviction, answer_steps=0))
    save_config(replace(alone, train=short.train), tmp_path / "alone")
    save_config(alone, tmp_path / "alone")


def test_another_config_in_the_same_folder_names_the_keys(alone):
    _, workdir = alone
    config = one_device()
    fine = replace(config, eval=EvalConfig(examples=7))
    run(toy_stages(), fine, workdir)
    wrong = replace(config, seed=5)
    with pytest.raises(UserError, match=r"run of another config(.|\n)*config.seed: 0 there, 5 now"):
        run(toy_stages(), wrong, workdir)
    run(toy_stages(), config, workdir)


def test_a_config_without_a_checkpoint_may_be_mended(tmp_path):
    """A run that was refused as it began, and told what to change, has written its config already."""

    def refused():
        raise UserError("raise config.data.lengths")

    stages = toy_stages()
    with pytest.raises(UserError, match=r"raise config.data.lengths"):
        run([replace(stages[0], make_pipeline=refused), *stages[1:]], one_device(), tmp_path)
    mended = replace(one_device(), seed=5)
    assert run(stages, mended, tmp_path).finished
    assert load_config(tmp_path / "config.json").seed == 5
    with pytest.raises(UserError, match=r"run of another config"):
        run(stages, one_device(), tmp_path)


def test_a_nan_now_and_then_is_survived_and_many_stop_the_run(tmp_path):
    survived = run(toy_stages(poison=(3, 4, 8)), one_device(), tmp_path / "few")
    assert survived.finished
    with pytest.raises(UserError, match=r"stage reader, step 7: square not finite since step 5 \(3 steps in a row"):
        run(toy_stages(poison=(4, 5, 6)), one_device(), tmp_path / "many")
    rows = [json.loads(line) for line in (tmp_path / "many" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert rows[-1]["loss"] is None


def test_what_failed_outside_is_named_before_the_numbers_that_it_spoiled(tmp_path):
    """Though it becomes known no earlier than they do."""
    away = UserError("the server is away")
    stages = [
        replace(stage, failure=lambda: away if sys.exception() else None) for stage in toy_stages(poison=(4, 5, 6))
    ]
    with pytest.raises(UserError, match="the server is away"):
        run(stages, one_device(), tmp_path)


def test_evaluation_before_training_says_so(tmp_path):
    with pytest.raises(UserError, match=r"holds no trained pruner yet: run rcp train"):
        restore(toy_stages(), one_device(), tmp_path)


def test_a_pipeline_state_always_names_the_next_batch(tmp_path):
    """Each step sees the batch of its own number, through an interruption: the pipeline is neither ahead nor behind."""
    seen: list[int] = []

    def record(stage):
        step = stage.step

        def recording(state, frozen, batch, *, axis_name):
            jax.debug.callback(lambda n, first: seen.append((int(n), int(first))), state.step, batch.index[0])
            return step(state, frozen, batch, axis_name=axis_name)

        return replace(stage, step=recording)

    stages = [record(stage) for stage in toy_stages(1, 12)][:2]
    cut = [stages[0], Interrupt(8, lambda: os.kill(os.getpid(), signal.SIGTERM)).wrap(stages[1])]
    run(cut, one_device(steps=12), tmp_path)
    run(stages, one_device(steps=12), tmp_path)
    jax.effects_barrier()
    assert seen == [(0, 0)] + [(n, 16 * n) for n in range(12)]


def test_killed_at_random_moments_the_run_ends_with_the_same_parameters(tmp_path):
    """SIGKILL while stepping, writing metrics or a checkpoint. Max difference 0."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for name, kills in (("whole", 0), ("killed", 5)):
        command = [sys.executable, str(TOY), str(tmp_path / name), "120", str(kills)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    difference = np.load(tmp_path / "killed" / "final.npy") - np.load(tmp_path / "whole" / "final.npy")
    assert np.abs(difference).max() == 0
    assert steps_logged(tmp_path / "killed") == list(range(1, 131))
