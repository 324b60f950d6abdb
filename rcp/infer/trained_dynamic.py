"""A training run of dynamic context pruning, ready to be used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jax
from flax import nnx

from rcp.config import Config
from rcp.config_file import load_config
from rcp.data.tasks import Task
from rcp.infer.saved_run import config_of_run, say_if_interrupted
from rcp.nn.interaction import Interaction
from rcp.nn.transformer import Transformer
from rcp.train.dynamic import build_dynamic
from rcp.train.loop import restore
from rcp.train.networks import model_params
from rcp.types import Tokenizer, UserError

TRAINED_WITH = "configs/dynamic.py"


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
    config = load_config(config_of_run(workdir, TRAINED_WITH))
    if not config.dynamic.on:
        raise UserError(
            f"{workdir} holds a run of another kind (config.dynamic.on is false): expected one of {TRAINED_WITH}"
        )
    computed = config if dtype is None else replace(config, model=replace(config.model, dtype=dtype))
    built = build_dynamic(computed)
    state, frozen = restore(built.stages, config, workdir)
    stage, step = built.stages[-1], int(state.step)
    say_if_interrupted(workdir, stage, step)
    params = jax.device_put(state.params)
    model = nnx.merge(built.graph, model_params(params, jax.device_put(frozen)))
    return TrainedDynamic(config, built.task, built.tokenizer, model, params["pruner"], stage.weights, step)
