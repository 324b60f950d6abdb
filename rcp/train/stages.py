"""The stages of a run, each a step with its own state, frozen values and data.

They are, in this order and as far as a config has them: reader, labels, states, warm start, judge, pruner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from rcp.config import Config
from rcp.config_fill import fill
from rcp.data.pipeline import EncodedTask, TrainPipeline
from rcp.data.tasks import TASKS, Task
from rcp.nn.lora import init_lora
from rcp.train.draws import Drawing
from rcp.train.judge_step import empty_log, make_judge_step
from rcp.train.lengths import Lengths
from rcp.train.loop import Stage
from rcp.train.networks import Networks
from rcp.train.optim import make_optimizer
from rcp.train.outside import Outside
from rcp.train.parallel import this_process
from rcp.train.prepare_step import Prepared
from rcp.train.reader_step import make_reader_step
from rcp.train.state import Step, TrainState, new_state
from rcp.train.step import make_pruner_step, needs_of
from rcp.train.table import TABLES
from rcp.types import Tokenizer, UserError

Params = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """What the stages that leave the model as it is are made of.

    Attributes:
      encoded: gives the training examples, shared by all stages.
      lengths: as in `Build.pruned_lengths`.
      scorer: its initial parameters.
      outside: the model that rewards, where it is not this one.
      weights, origin: of a published model and its fingerprint; None for one that the stage before trains.
    """

    networks: Networks
    encoded: Callable[[], EncodedTask]
    lengths: Lengths
    scorer: Params
    weights: Params | None
    origin: str | None
    outside: Outside | None = None

    def model(self, previous: Params | None) -> Params:
        """The model's parameters: published, or those that a stage before has trained."""
        if self.weights is not None:
            return self.weights
        assert previous is not None
        return previous["model"]

    def pruner(self, previous: Params | None) -> Params:
        """The scorer's parameters: initial, or those that a stage before has trained."""
        return (previous or {}).get("pruner", self.scorer)

    def drawing(self, config: Config) -> Drawing:
        """How that config, on these networks, draws and judges masks."""
        return Drawing(config, self.networks, self.lengths, self.outside)


def encode_training(
    config: Config, task: Task, tokenizer: Tokenizer, positions: int, *, first: bool = False
) -> EncodedTask:
    """The training examples of the pruner's stage, or of the reader's (`first`); tokenised when they are asked for.

    `positions`: of the model that reads them.
    """
    return EncodedTask(
        task,
        tokenizer,
        "train",
        None if first else config.data.train_examples,
        lengths=(config.reader.lengths if first else None) or config.data.lengths,
        max_segments=config.data.max_segments,
        max_answer=config.data.max_answer,
        overlong=config.data.overlong,
        positions=positions,
    )


def reader_stage(config: Config, task: Task, tokenizer: Tokenizer, networks: Networks, initial: Params) -> Stage:
    """The stage that trains a model from scratch, from its `initial` parameters."""
    r = config.reader
    own_task = fill(TASKS[config.task.name], {**config.task.fields, **r.task}, "config.reader.task") if r.task else task
    optim = replace(config.optim, model_learning_rate=r.learning_rate, warmup_steps=r.warmup_steps)
    optimizer = make_optimizer(optim, r.steps, ("model",))

    def init_state(previous: Params | None) -> TrainState:
        params = {"model": initial}
        return new_state(config.seed, params, optimizer.init(params))

    def make_pipeline() -> TrainPipeline:
        encoded = encode_training(config, own_task, tokenizer, config.model.max_positions, first=True)
        return TrainPipeline(
            encoded, batch_size=r.batch_size or config.data.batch_size, seed=config.seed, shard=this_process()
        )

    return Stage("reader", r.steps, make_reader_step(networks, optimizer), init_state, lambda _: {}, make_pipeline)


def prepare_stage(prepared: Prepared, config: Config, parts: Parts, width: int) -> Stage:
    """Computes what the stages after it look up; `width` of the model."""

    def init_state(previous: Params | None) -> TrainState:
        return new_state(config.seed, {prepared.name: prepared.empty(config, width)}, ())

    def frozen(previous: Params | None) -> Params:
        return {"model": parts.model(previous)}

    step = prepared.make_step(config, parts.networks, parts.lengths)
    stage = _one_pass(prepared.name, config, parts, step, init_state, frozen)
    return stage if parts.weights is None else replace(stage, decides=prepared.decides)


def judge_stage(config: Config, seed: int, parts: Parts) -> Stage:
    """Draws masks by the scorer as it is by then and judges them, for the pruner's stage to look up."""

    def init_state(previous: Params | None) -> TrainState:
        return new_state(seed, {"logged": empty_log(config)}, ())

    def frozen(previous: Params | None) -> Params:
        values = {"model": parts.model(previous), "pruner": parts.pruner(previous)}
        return values | _tables(previous)

    step = make_judge_step(config, parts.drawing(config))
    stage = _one_pass("judge", config, parts, step, init_state, frozen)
    return _watched(stage, parts.outside)


def _one_pass(
    name: str,
    config: Config,
    parts: Parts,
    step: Step,
    init_state: Callable[[Params | None], TrainState],
    frozen: Callable[[Params | None], Params],
) -> Stage:
    """A stage that goes over the training examples once, in order."""
    size = config.data.batch_size

    def make_pipeline() -> TrainPipeline:
        return TrainPipeline(parts.encoded(), batch_size=size, seed=0, ordered=True, shard=this_process())

    steps = -(-(config.data.train_examples or 0) // size)
    return Stage(name, steps, step, init_state, frozen, make_pipeline, weights=parts.origin)


def _tables(previous: Params | None) -> Params:
    """What stages before have computed once."""
    return {name: table for name, table in (previous or {}).items() if name in TABLES}


def _watched(stage: Stage, outside: Outside | None) -> Stage:
    """The stage, which says what went wrong at the endpoint that rewards, if one does."""
    return stage if outside is None else replace(stage, failure=lambda: outside.failure)


def warm_start(config: Config) -> Config:
    """The config of the pruner's first stage, which leaves the model as it is."""
    train, model = replace(config.train, steps=config.warm_start.steps), replace(config.model, train="frozen")
    return replace(config, objectives=config.warm_start.objectives, train=train, model=model)


def pruner_stage(name: str, config: Config, seed: int, parts: Parts) -> Stage:
    """A stage that trains the scorer by `config.objectives`, and the model where `config.model.train` says so."""
    updates = config.train.steps * config.policy.updates
    partitions = ("pruner",)
    if config.model.train != "frozen":
        partitions += ("model" if config.model.train == "full" else "lora",)
    if "multiplier" in needs_of(config):
        partitions += ("dual",)
    optimizer = make_optimizer(config.optim, updates, partitions)

    def init_state(previous: Params | None) -> TrainState:
        params: Params = {"pruner": parts.pruner(previous)}
        if config.model.train == "full":
            params["model"] = parts.model(previous)
        elif config.model.train == "lora":
            params["lora"] = init_lora(parts.model(previous), config.model.lora_rank, jax.random.key(config.seed + 2))
        if "dual" in partitions:
            params["dual"] = {"budget": jnp.zeros((), jnp.float32)}
        aux = {"baseline": jnp.zeros((), jnp.float32)} if config.policy.baseline == "moving_average" else {}
        return new_state(seed, params, optimizer.init(params), aux)

    def frozen(previous: Params | None) -> Params:
        values = {} if config.model.train == "full" else {"model": parts.model(previous)}
        return values | _tables(previous)

    def make_pipeline() -> TrainPipeline:
        encoded = parts.encoded()
        known = encoded.examples[0].support is not None
        if "labels" in needs_of(config) and config.labels.source == "support" and not known:
            raise UserError(
                f'config.labels.source is "support", but the task {config.task.name} does not know which segments a '
                'question needs: expected "leave_one_out" or "alone"'
            )
        return TrainPipeline(
            encoded,
            batch_size=config.data.batch_size,
            seed=seed + 1,
            phases=config.data.phases,
            repeats=config.data.repeats,
            shard=this_process(),
        )

    step = make_pruner_step(config, parts.networks, optimizer, parts.drawing(config))
    stage = Stage(name, config.train.steps, step, init_state, frozen, make_pipeline, weights=parts.origin)
    return _watched(stage, parts.outside)
