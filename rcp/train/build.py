"""A config -> everything a run consists of: task, tokenizer, networks, stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rcp.config import Config
from rcp.config_fill import fill
from rcp.data.pipeline import EncodedTask, TrainPipeline
from rcp.data.tasks import TASKS, Task
from rcp.nn.influx import InfluxConfig, InfluxScorer
from rcp.nn.lora import init_lora
from rcp.nn.scorer import Scorer, ScorerConfig
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.objectives import OBJECTIVES
from rcp.pretrained import load
from rcp.train.lengths import Lengths, pruned_lengths
from rcp.train.loop import Stage
from rcp.train.optim import make_optimizer
from rcp.train.parallel import start_processes, this_process
from rcp.train.reader_step import make_reader_step
from rcp.train.state import TrainState, new_state
from rcp.train.step import Networks, make_pruner_step, needs_of
from rcp.types import Tokenizer, UserError

Params = dict[str, Any]


@dataclass(frozen=True)
class Build:
    """Attributes:
    task, tokenizer: of the run.
    networks: the graphs of model and scorer.
    stages: "reader" (only where the model is trained from scratch), "warm_start" (where it is configured), "pruner".
    pruned_lengths: from the static length of a whole prompt to those that hold every training prompt pruned, and with
      one segment alone; measured on the training examples when first asked for.
    """

    task: Task
    tokenizer: Tokenizer
    networks: Networks
    stages: list[Stage]
    pruned_lengths: Lengths


def build(config: Config) -> Build:
    """Loads what the config names and puts the run together. The same config always gives the same run.

    Joins the other processes first, where the config names them: that must come before anything touches a device.

    Raises:
      UserError: unknown task or task field; no objective; model without weights, or of impossible dimensions. And when
        a stage makes its pipeline: no example; "bce" on the support of a task that does not know it.
    """
    if not config.objectives:
        raise UserError(f"config.objectives is empty: expected one or more of {', '.join(OBJECTIVES)}")
    start_processes(config.parallel)
    task = make_task(config)
    scratch = config.model.name == "scratch"
    weights = origin = None
    if scratch:
        tokenizer = task.tokenizer()
        if tokenizer is None:
            raise UserError(f'config.model.name is "scratch", but the task {config.task.name} brings no tokenizer')
        model = _scratch_model(config, tokenizer)
    else:
        # Updates of a trained model are far below what bfloat16 resolves next to a weight.
        stored = "float32" if config.model.train != "frozen" else None
        pretrained = load(config.model.name, dtype=config.model.dtype, param_dtype=stored)
        tokenizer, model, origin = pretrained.tokenizer, pretrained.model, pretrained.fingerprint
    model.remat = config.model.remat
    model_graph, model_state = nnx.split(model)
    if not scratch:
        weights = nnx.to_pure_dict(model_state)
    scorer_graph, scorer_params = _scorer(config, model.config)
    layer = None if config.scorer.kind == "standalone" else config.scorer.layer
    apart = config.scorer.positions if config.scorer.kind == "cot_influx" else None
    networks = Networks(model_graph, scorer_graph, layer, config.data.max_answer, apart)

    stages = []
    if scratch:
        if not config.reader.steps:
            raise UserError("config.reader.steps is 0, but a model from scratch must be trained before its pruner")
        stages.append(_reader_stage(config, task, tokenizer, networks, nnx.to_pure_dict(model_state)))
    encoded = cache(lambda: encode_training(config, task, tokenizer))
    lengths = pruned_lengths(config.budget, encoded)
    warm = _warm_start(config)
    for name, own, seed in (("warm_start", warm, config.seed + 5), ("pruner", config, config.seed + 3)):
        if own is not None:
            stages.append(_pruner_stage(name, own, seed, encoded, networks, scorer_params, weights, lengths, origin))
    return Build(task, tokenizer, networks, stages, lengths)


def make_task(config: Config) -> Task:
    """The task of a config. Raises UserError on an unknown name or field."""
    if config.task.name not in TASKS:
        raise UserError(f"config.task.name is {config.task.name!r}; known tasks: {', '.join(sorted(TASKS))}")
    return fill(TASKS[config.task.name], config.task.fields, "config.task")


def encode_training(config: Config, task: Task, tokenizer: Tokenizer, *, first: bool = False) -> EncodedTask:
    """The training examples of the pruner's stage, or of the reader's (`first`); tokenised when they are asked for."""
    return EncodedTask(
        task,
        tokenizer,
        "train",
        None if first else config.data.train_examples,
        lengths=(config.reader.lengths if first else None) or config.data.lengths,
        max_segments=config.data.max_segments,
        max_answer=config.data.max_answer,
        overlong=config.data.overlong,
    )


def _scratch_model(config: Config, tokenizer: Tokenizer) -> Transformer:
    m = config.model
    vocabulary = m.vocab_size or tokenizer.vocab_size
    if vocabulary < tokenizer.vocab_size:
        raise UserError(
            f"config.model.vocab_size is {vocabulary}: the tokenizer of task {config.task.name} has "
            f"{tokenizer.vocab_size} symbols"
        )
    try:
        shape = TransformerConfig(
            vocab_size=vocabulary,
            d_model=m.d_model,
            n_layers=m.n_layers,
            n_heads=m.n_heads,
            n_kv_heads=m.n_kv_heads,
            head_dim=m.head_dim,
            d_ff=m.d_ff,
            rope_theta=m.rope_theta,
            max_positions=m.max_positions,
        )
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None
    return Transformer(shape, rngs=nnx.Rngs(config.seed), dtype=m.dtype, param_dtype="float32")


def _scorer(config: Config, model: TransformerConfig) -> tuple[nnx.GraphDef, Params]:
    s = config.scorer
    if s.width % s.heads:
        raise UserError(f"config.scorer.width is {s.width}: expected a multiple of config.scorer.heads = {s.heads}")
    if s.kind != "standalone" and not 0 <= s.layer <= model.n_layers:
        raise UserError(f"config.scorer.layer is {s.layer}: expected 0 to {model.n_layers}, the model's layers")
    inputs, rngs = model.vocab_size if s.kind == "standalone" else model.d_model, nnx.Rngs(config.seed + 1)
    if s.kind == "cot_influx":
        scorer = InfluxScorer(InfluxConfig(inputs, s.width, s.positions, s.padding), rngs)
    else:
        scorer = Scorer(ScorerConfig(s.kind, inputs, s.width, s.depth, s.heads, s.budget), rngs)
    graph, state = nnx.split(scorer)
    return graph, nnx.to_pure_dict(state)


def _reader_stage(config: Config, task: Task, tokenizer: Tokenizer, networks: Networks, initial: Params) -> Stage:
    r = config.reader
    own_task = fill(TASKS[config.task.name], {**config.task.fields, **r.task}, "config.reader.task") if r.task else task
    optim = replace(config.optim, model_learning_rate=r.learning_rate, warmup_steps=r.warmup_steps)
    optimizer = make_optimizer(optim, r.steps, ("model",))

    def init_state(previous: Params | None) -> TrainState:
        params = {"model": initial}
        return new_state(config.seed, params, optimizer.init(params))

    def make_pipeline() -> TrainPipeline:
        encoded = encode_training(config, own_task, tokenizer, first=True)
        return TrainPipeline(
            encoded, batch_size=r.batch_size or config.data.batch_size, seed=config.seed, shard=this_process()
        )

    return Stage("reader", r.steps, make_reader_step(networks, optimizer), init_state, lambda _: {}, make_pipeline)


def _warm_start(config: Config) -> Config | None:
    """The pruner's config with the steps and objectives of its warm start and the model frozen, if there is one."""
    w = config.warm_start
    if not w.steps:
        return None
    train, model = replace(config.train, steps=w.steps), replace(config.model, train="frozen")
    return replace(config, objectives=w.objectives, train=train, model=model)


def _pruner_stage(
    name: str,
    config: Config,
    seed: int,
    encoded: Callable[[], EncodedTask],
    networks: Networks,
    scorer_params: Params,
    weights: Params | None,
    lengths: Lengths,
    origin: str | None,
) -> Stage:
    updates = config.train.steps * config.policy.updates
    partitions = ("pruner",)
    if config.model.train != "frozen":
        partitions += ("model" if config.model.train == "full" else "lora",)
    if "multiplier" in needs_of(config):
        partitions += ("dual",)
    optimizer = make_optimizer(config.optim, updates, partitions)

    def model_params(previous: Params | None) -> Params:
        if weights is not None:
            return weights
        assert previous is not None
        return previous["model"]

    def init_state(previous: Params | None) -> TrainState:
        params: Params = {"pruner": (previous or {}).get("pruner", scorer_params)}
        if config.model.train == "full":
            params["model"] = model_params(previous)
        elif config.model.train == "lora":
            params["lora"] = init_lora(model_params(previous), config.model.lora_rank, jax.random.key(config.seed + 2))
        if "dual" in partitions:
            params["dual"] = {"budget": jnp.zeros((), jnp.float32)}
        aux = {"baseline": jnp.zeros((), jnp.float32)} if config.policy.baseline == "moving_average" else {}
        return new_state(seed, params, optimizer.init(params), aux)

    def frozen(previous: Params | None) -> Params:
        return {} if config.model.train == "full" else {"model": model_params(previous)}

    def make_pipeline() -> TrainPipeline:
        pipeline = TrainPipeline(
            encoded(),
            batch_size=config.data.batch_size,
            seed=seed + 1,
            phases=config.data.phases,
            repeats=config.data.repeats,
            shard=this_process(),
        )
        known = pipeline.encoded.examples[0].support is not None
        if "bce" in config.objectives and config.labels.source == "support" and not known:
            raise UserError(
                f'config.labels.source is "support", but the task {config.task.name} does not know which segments a '
                'question needs: expected "leave_one_out" or "alone"'
            )
        return pipeline

    step = make_pruner_step(config, networks, optimizer, lengths)
    return Stage(name, config.train.steps, step, init_state, frozen, make_pipeline, weights=origin)
