"""What each of two processes runs in the test of training over several: `python processes.py PORT PROCESS WORKDIR`.

Two small runs, one in each mode: from a config by the real steps, and the toy.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rcp.config import Config, ParallelConfig
from rcp.config_file import from_dict
from rcp.train.build import build
from rcp.train.loop import Params, Stage, run
from rcp.train.parallel import start_processes, this_process
from rcp.train.state import TrainState
from tests.train.toy import ToyBatch, ToyPipeline, toy_config, toy_stages


def real_config(parallel: ParallelConfig) -> Config:
    """Both stages of the chain task, small enough to be compiled in seconds."""
    values: dict[str, Any] = {
        "task": {"name": "chain", "segments": (2, 3), "test_segments": (3, 3), "needed": (1, 2), "variables": 4},
        "data": {"batch_size": 4, "lengths": (16, 24), "max_segments": 3, "max_answer": 1, "train_examples": 16},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 16},
        "reader": {"steps": 2},
        "scorer": {"kind": "standalone", "width": 16, "heads": 2},
        "objectives": {"bce": 1.0},
        "train": {"steps": 4, "log_every": 1, "checkpoint_every": 2},
    }
    return replace(from_dict(values), parallel=parallel)


class Share(ToyPipeline):
    """This process's rows of the toy's batches."""

    def __next__(self) -> ToyBatch:
        process, processes = this_process()
        return ToyBatch(*(x.reshape(processes, -1, *x.shape[1:])[process] for x in super().__next__()))


def shared_toy_stages() -> list[Stage]:
    return [replace(stage, make_pipeline=Share) for stage in toy_stages(2, 6)]


def coming_late(stage: Stage) -> Stage:
    """The second process begins it when the first has long begun."""

    def init_state(previous: Params | None) -> TrainState:
        time.sleep(0.5 * this_process()[0])
        return stage.init_state(previous)

    return replace(stage, init_state=init_state)


if __name__ == "__main__":
    port, process, workdir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    here = ParallelConfig(coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=process)
    start_processes(here)
    config = real_config(here)
    run(build(config).stages, config, workdir / "real")
    config = replace(toy_config(6, every=2), parallel=replace(here, mode="mesh"))
    run([coming_late(stage) for stage in shared_toy_stages()], config, workdir / "toy")
