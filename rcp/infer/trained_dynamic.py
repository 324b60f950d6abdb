"""A training run of dynamic context pruning, ready to be used."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from flax import nnx

from rcp.config import Config
from rcp.config_file import load_config
from rcp.data.tasks import Task
from rcp.nn.interaction import Interaction
from rcp.nn.transformer import Transformer
from rcp.train.dynamic import build_dynamic
from rcp.train.dynamic_step import model_params
from rcp.train.loop import restore
from rcp.types import Tokenizer, UserError


@dataclass(frozen=True)
class TrainedDynamic:
    """Attributes:
    model: with its trained parameters, without gates, which are made of `interaction`.
    weights: fingerprint of the published weights that training began with, if any.
    step: training steps taken.
    """

    config: Config
    task: Task
    tokenizer: Tokenizer
    model: Transformer
    interaction: Interaction
    weights: str | None
    step: int


def load_dynamic(workdir: str | Path, *, dtype: str | None = None) -> TrainedDynamic:
    """The run in `workdir`; an interrupted one says so on stderr. `dtype`: of computation, None that of training.

    Raises:
      UserError: no run there, one of another kind, nothing trained yet, or no checkpoint that can be read.
    """
    workdir = Path(workdir)
    saved = workdir / "config.json"
    train = f"rcp train --config=configs/dynamic.py --workdir={workdir}"
    if not saved.exists():
        raise UserError(f"{workdir} holds no run (no config.json); train one: {train}")
    config = load_config(saved)
    if not config.dynamic.on:
        raise UserError(f"{workdir} holds a run of another kind (config.dynamic.on is false); train one: {train}")
    computed = config if dtype is None else replace(config, model=replace(config.model, dtype=dtype))
    built = build_dynamic(computed)
    state, frozen = restore(built.stages, config, workdir)
    stage = built.stages[-1]
    if (step := int(state.step)) < stage.steps:
        print(
            f"{workdir}: training stopped at step {step} of {stage.steps}; what it learned so far is used",
            file=sys.stderr,
        )
    params = jax.device_put(state.params)
    model = nnx.merge(built.graph, model_params(params, jax.device_put(frozen)))
    return TrainedDynamic(config, built.task, built.tokenizer, model, params["pruner"], stage.weights, step)
