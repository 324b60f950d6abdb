"""The stages of a run that learns eviction: a scorer on traces alone, then, if asked for, through answers too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import nnx

from rcp.config import Config, ModelConfig, OptimConfig
from rcp.config_eviction import LATER, EvictionConfig
from rcp.eviction.learned import inputs_of_entry
from rcp.nn.eviction_scorer import ScorerShape, init_scorer
from rcp.nn.lora import init_lora
from rcp.nn.transformer import TransformerConfig
from rcp.pretrained import Pretrained, load
from rcp.train.eviction_step import Scoring, make_eviction_step
from rcp.train.loop import Stage
from rcp.train.optim import make_optimizer
from rcp.train.parallel import start_processes, this_process
from rcp.train.state import TrainState, new_state
from rcp.train.trace_pipeline import TraceBatch, TracePipeline
from rcp.train.traces import Traces
from rcp.types import UserError

Params = dict[str, Any]
UNTUNED = {"train": ModelConfig.train, "lora_rank": ModelConfig.lora_rank, "remat": ModelConfig.remat}


def eviction_stages(config: Config, loaded: Pretrained | None = None) -> list[Stage]:
    """The stages: "traces" (`eviction.objectives`) and "answers" (`eviction.answer_objectives`), where it has steps.

    Args:
      loaded: the model; None loads what the config names.

    Raises:
      UserError: no published model, one that is to be trained whole or where nothing trains it, or an unknown task.
    """
    if config.model.name == "scratch" or config.model.train == "full":
        raise UserError(
            f"config.model is {config.model.name!r}, train {config.model.train!r}: a run with config.eviction.tasks "
            'needs a published model, train "frozen" or "lora"'
        )
    if config.model.train == "lora" and not (config.eviction.answer_steps and config.eviction.reading == "anew"):
        raise UserError(
            'config.model.train is "lora", which the second stage trains where it reads contexts itself: expected '
            'config.eviction.answer_steps above 0 and config.eviction.reading "anew"'
        )
    start_processes(config.parallel)
    if loaded is None:
        loaded = load(config.model.name, dtype=config.model.dtype)
    stages = [_stage(config, loaded, "traces")]
    return [*stages, _stage(config, loaded, "answers")] if config.eviction.answer_steps else stages


def scorer_shape(config: Config, model: TransformerConfig) -> ScorerShape:
    """Of the scorer that a config asks for."""
    c = config.eviction
    return ScorerShape(
        layers=model.n_layers,
        kv_heads=model.n_kv_heads,
        inputs=inputs_of_entry(model.head_dim, len(c.measures), c.question),
        common=model.d_model if c.hidden else 0,
        heads=c.heads,
        width=c.width,
        kernel=c.kernel,
    )


@dataclass(frozen=True)
class _Kind:
    steps: int
    batch_size: int
    objectives: dict[str, float]
    optim: OptimConfig
    seed: int


def _stage(config: Config, loaded: Pretrained, name: str) -> Stage:
    c, answers = config.eviction, name == "answers"
    kind = _Kind(config.train.steps, c.batch_size, c.objectives, config.optim, config.seed + 3)
    if answers:
        rate = c.answer_learning_rate or config.optim.learning_rate
        optim = replace(config.optim, learning_rate=rate)
        kind = _Kind(c.answer_steps, c.answer_batch_size, c.answer_objectives, optim, config.seed + 4)
    shape = scorer_shape(config, loaded.config)
    graph, state = nnx.split(loaded.model)
    graph = _recomputing(graph, state) if config.model.remat else graph
    weights = nnx.to_pure_dict(state)
    lora = answers and config.model.train == "lora"
    optimizer = make_optimizer(kind.optim, kind.steps, ("pruner", "lora") if lora else ("pruner",))

    def init_state(previous: Params | None) -> TrainState:
        params = {"pruner": previous["pruner"] if previous else init_scorer(shape, jax.random.key(config.seed + 1))}
        if lora:
            params["lora"] = init_lora(weights, config.model.lora_rank, jax.random.key(config.seed + 2))
        return new_state(kind.seed, params, optimizer.init(params))

    def frozen(previous: Params | None) -> Params:
        values: Params = {"frequencies": loaded.model.frequencies()}
        return values | ({"model": weights} if answers else {})

    traces = cache(lambda: Traces(c, loaded))

    def make_pipeline() -> TracePipeline:
        options = {"batch_size": kind.batch_size, "seed": kind.seed, "answers": answers, "shard": this_process()}
        return TracePipeline(traces(), c, **options)

    step = make_eviction_step(c, kind.objectives, Scoring(shape, graph, loaded.model.dtype), optimizer)
    return Stage(
        name,
        kind.steps,
        step,
        init_state,
        frozen,
        make_pipeline,
        count_tokens=_count,
        weights=loaded.fingerprint,
        decides=None if answers else traces_decide,
        prepare=lambda stopping: traces().make_all(stopping),
    )


def traces_decide(config: Config) -> Config:
    """What of a config decides the first stage: all but what the second alone looks at, which is at its default."""
    default = EvictionConfig()
    later = {key: getattr(default, key) for key in LATER}
    return replace(config, eviction=replace(config.eviction, **later), model=replace(config.model, **UNTUNED))


def _recomputing(graph: nnx.GraphDef, state: Any) -> nnx.GraphDef:
    """The same model, which in a backward pass computes its activations anew."""
    model = nnx.merge(graph, state)
    model.remat = True
    return nnx.split(model)[0]


def _count(batch: TraceBatch) -> int:
    return int(np.sum(batch.position >= 0))
