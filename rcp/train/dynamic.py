"""A config of dynamic context pruning -> its one training stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
from flax import nnx

from rcp.config import Config
from rcp.data.pipeline import TrainPipeline
from rcp.data.tasks import Task
from rcp.nn.interaction import init_interaction
from rcp.nn.lora import init_lora
from rcp.train.build import make_task, reader_of
from rcp.train.dynamic_step import make_dynamic_step
from rcp.train.loop import Stage
from rcp.train.optim import make_optimizer
from rcp.train.parallel import start_processes, this_process
from rcp.train.stages import encode_training
from rcp.train.state import TrainState, new_state
from rcp.types import Tokenizer

Params = dict[str, Any]


@dataclass(frozen=True)
class DynamicBuild:
    """Attributes:
    graph: of the model, which `rcp.train.networks.model_params` gives its parameters.
    stages: the one stage "dynamic", which trains the interaction (partition "pruner") and the model as configured.
    """

    task: Task
    tokenizer: Tokenizer
    graph: nnx.GraphDef
    stages: list[Stage]


def build_dynamic(config: Config) -> DynamicBuild:
    """Loads what the config names. A model from scratch is trained whole, and at once with its interaction.

    Raises:
      UserError: unknown task; model without weights; "scratch" with a task that brings no tokenizer.
    """
    start_processes(config.parallel)
    task = make_task(config)
    model, tokenizer, origin = reader_of(config, task)
    whole = config.model.name == "scratch" or config.model.train == "full"
    lora = not whole and config.model.train == "lora"
    graph, state = nnx.split(model)
    weights, shape = nnx.to_pure_dict(state), model.config
    partitions = ("pruner", *(("model",) if whole else ()), *(("lora",) if lora else ()))
    optimizer = make_optimizer(config.optim, config.train.steps, partitions)

    def init_state(previous: Params | None) -> TrainState:
        d = config.dynamic
        key = jax.random.key(config.seed + 1)
        params: Params = {"pruner": init_interaction(shape.n_layers, shape.d_model, d.rank, d.beta, key)}
        if whole:
            params["model"] = weights
        if lora:
            params["lora"] = init_lora(weights, config.model.lora_rank, jax.random.key(config.seed + 2))
        return new_state(config.seed, params, optimizer.init(params))

    encoded = cache(lambda: encode_training(config, task, tokenizer, shape.max_positions))

    def make_pipeline() -> TrainPipeline:
        d = config.data
        return TrainPipeline(
            encoded(),
            batch_size=d.batch_size,
            seed=config.seed + 3,
            phases=d.phases,
            repeats=d.repeats,
            shard=this_process(),
        )

    def frozen(previous: Params | None) -> Params:
        return {} if whole else {"model": weights}

    step = make_dynamic_step(graph, config, optimizer)
    stage = Stage("dynamic", config.train.steps, step, init_state, frozen, make_pipeline, weights=origin)
    return DynamicBuild(task, tokenizer, graph, [stage])
