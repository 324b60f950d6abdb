"""Training over two processes gives what one gives; one that is killed gives what one left alone gives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from rcp.config import ParallelConfig
from rcp.config_file import load_config
from rcp.train.build import build
from rcp.train.loop import restore, run

from .processes import real_config, shared_toy_stages
from .toy import toy_config

ROOT = Path(__file__).parents[2]
CHILDREN = Path(__file__).parent / "processes.py"


def rows_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def environment(folder: Path) -> dict[str, str]:
    """The children share what they compile and have one device each."""
    own = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "JAX_NUM_CPU_DEVICES": "1"}
    return {**os.environ, **own, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def test_two_processes_give_the_numbers_of_one(tmp_path):
    """A batch cut in two, metrics and checkpoints written once, and a checkpoint that one process can go on from."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = [
        subprocess.Popen(
            [sys.executable, str(CHILDREN), port, str(process), str(tmp_path)],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [child.communicate(timeout=600)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(said)
    assert "pruner 4/4" in said[0] and "pruner" not in said[1]

    alone = ParallelConfig(devices=1)
    config = real_config(alone)
    runs = {
        "real": (build(config).stages, config),
        "toy": (shared_toy_stages(), toy_config(6, every=2)),
    }
    for name, (stages, config) in runs.items():
        whole = run(stages, config, tmp_path / f"{name}-alone")
        state, _ = restore(stages, config, tmp_path / name)
        assert state.step == whole.step
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), state, whole.state)
        both = zip(rows_of(tmp_path / name), rows_of(tmp_path / f"{name}-alone"), strict=True)
        for row, expected in both:
            assert (row["step"], row["stage"]) == (expected["step"], expected["stage"])
            np.testing.assert_allclose(row["loss"], expected["loss"], rtol=1e-4)
        assert load_config(tmp_path / name / "config.json").parallel.coordinator is None


def test_the_real_training_killed_ends_with_the_same_parameters(tmp_path):
    """`rcp train` on the smoke config, killed with SIGKILL in each stage and started again. Max difference 0."""
    flags = ["reader.steps=30", "train.steps=60", "train.checkpoint_every=7", "parallel.devices=1"]
    flags += ["scorer.depth=1", "policy.samples=2"]

    def train(name: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "rcp", "train", "--config=configs/smoke.py", f"--workdir={tmp_path / name}"]
        command += [f"--config.{flag}" for flag in flags]
        return subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stderr=subprocess.DEVNULL)

    def kill_after(step: int) -> None:
        metrics, child = tmp_path / "killed" / "metrics.jsonl", train("killed")
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        child.kill()
        assert child.wait() == -signal.SIGKILL

    assert train("whole").wait(timeout=600) == 0
    kill_after(10)
    kill_after(44)
    logged = len(rows_of(tmp_path / "killed"))
    assert 44 <= logged < 90
    assert train("killed").wait(timeout=600) == 0

    states = []
    for name in ("whole", "killed"):
        config = load_config(tmp_path / name / "config.json")
        states.append(restore(build(config).stages, config, tmp_path / name))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert [row["step"] for row in rows_of(tmp_path / "killed")] == list(range(1, 91))
    whole, killed = ([row["loss"] for row in rows_of(tmp_path / name)] for name in ("whole", "killed"))
    assert whole == killed
