"""A config -> everything a run consists of: task, tokenizer, networks, stages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from flax import nnx

from rcp.config import Config
from rcp.config_fill import fill
from rcp.data.tasks import TASKS, Task
from rcp.nn.influx import InfluxConfig, InfluxScorer, shot_states
from rcp.nn.pieces import piece_states
from rcp.nn.scorer import POOLED, Scorer, ScorerConfig, early_features, piece_features
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.objectives import OBJECTIVES
from rcp.pretrained import load
from rcp.train.eviction_stages import eviction_stages
from rcp.train.lengths import Lengths, pruned_lengths
from rcp.train.loop import Stage
from rcp.train.networks import Networks, View
from rcp.train.outside import Outside
from rcp.train.parallel import start_processes
from rcp.train.prepare_step import PREPARED
from rcp.train.stages import (
    Parts,
    encode_training,
    judge_stage,
    prepare_stage,
    pruner_stage,
    reader_stage,
    warm_start,
)
from rcp.types import Tokenizer, UserError

Params = dict[str, Any]


@dataclass(frozen=True)
class Build:
    """Attributes:
    task, tokenizer: of the run.
    networks: the graphs of model and scorer.
    stages: "reader" (only where the model is trained from scratch), "labels", "states", "warm_start" and "judge"
      (where they are configured), "pruner".
    pruned_lengths: from the static length of a whole prompt to those that hold every training prompt pruned, and with
      one segment alone; measured on the training examples when first asked for.
    outside: the model behind an endpoint that rewards, where `reward.reader` says so.
    """

    task: Task
    tokenizer: Tokenizer
    networks: Networks
    stages: list[Stage]
    pruned_lengths: Lengths
    outside: Outside | None = None


def build(config: Config) -> Build:
    """Loads what the config names and puts the run together. The same config always gives the same run.

    Joins the other processes first, where the config names them: that must come before anything touches a device.

    Raises:
      UserError: unknown task or task field; no objective; groups that the task does not have; model without weights,
        or of impossible dimensions. And when a stage makes its pipeline: no example; keep-labels that are the support
        of a task that does not know it; then prompts over the model's positions, or over `data.lengths`.
    """
    if not config.objectives:
        raise UserError(f"config.objectives is empty: expected one or more of {', '.join(OBJECTIVES)}")
    start_processes(config.parallel)
    task = make_task(config)
    if config.scorer.groups > 1 and config.scorer.groups != len(task.groups):
        raise UserError(
            f"config.scorer.groups is {config.scorer.groups}: expected 1 or {len(task.groups)}, the groups of the task "
            f"{config.task.name} ({', '.join(task.groups)})"
        )
    scratch = config.model.name == "scratch"
    weights = None
    model, tokenizer, origin = reader_of(config, task)
    model_graph, model_state = nnx.split(model)
    if not scratch:
        weights = nnx.to_pure_dict(model_state)
    scorer_graph, scorer_params = _scorer(config, model.config)
    networks = Networks(model_graph, scorer_graph, _view(config), config.data.max_answer, not config.scorer.question)

    stages = []
    if scratch:
        if not config.reader.steps:
            raise UserError("config.reader.steps is 0, but a model from scratch must be trained before its pruner")
        stages.append(reader_stage(config, task, tokenizer, networks, nnx.to_pure_dict(model_state)))
    encoded = cache(lambda: encode_training(config, task, tokenizer, model.config.max_positions))
    lengths = pruned_lengths(config.budget, encoded)
    outside = Outside(config, task, tokenizer, encoded) if config.reward.reader == "openai" else None
    parts = Parts(networks, encoded, lengths, scorer_params, weights, origin, outside)
    if config.train.prepare:
        used = [prepared for prepared in PREPARED if prepared.used(config)]
        stages += [prepare_stage(prepared, config, parts, model.config.d_model) for prepared in used]
    if config.warm_start.steps:
        stages.append(pruner_stage("warm_start", warm_start(config), config.seed + 5, parts))
    if config.policy.logged:
        stages.append(judge_stage(config, config.seed + 7, parts))
    stages.append(pruner_stage("pruner", config, config.seed + 3, parts))
    return Build(task, tokenizer, networks, stages, lengths, outside)


def stages_of(config: Config) -> list[Stage]:
    """What `rcp train` runs: the stages of whatever kind of run a config describes."""
    if config.dynamic.on:
        from rcp.train.dynamic import build_dynamic  # which stands on this file

        return build_dynamic(config).stages
    return eviction_stages(config) if config.eviction.tasks else build(config).stages


def make_task(config: Config) -> Task:
    """The task of a config. Raises UserError on an unknown name or field."""
    if config.task.name not in TASKS:
        raise UserError(f"config.task.name is {config.task.name!r}; known tasks: {', '.join(sorted(TASKS))}")
    return fill(TASKS[config.task.name], config.task.fields, "config.task")


def reader_of(config: Config, task: Task) -> tuple[Transformer, Tokenizer, str | None]:
    """The model with its parameters, its tokenizer, and the fingerprint of published weights, if these are.

    Raises:
      UserError: weights that are not found; "scratch" with a task that brings no tokenizer, or impossible dimensions.
    """
    if config.model.name == "scratch":
        tokenizer = task.tokenizer()
        if tokenizer is None:
            raise UserError(f'config.model.name is "scratch", but the task {config.task.name} brings no tokenizer')
        model, origin = _scratch_model(config, tokenizer), None
    else:
        # Updates of a trained model are far below what bfloat16 resolves next to a weight.
        stored = "float32" if config.model.train != "frozen" else None
        pretrained = load(config.model.name, dtype=config.model.dtype, param_dtype=stored)
        model, tokenizer, origin = pretrained.model, pretrained.tokenizer, pretrained.fingerprint
    model.remat = config.model.remat
    return model, tokenizer, origin


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


def _view(config: Config) -> View | None:
    """What the scorer reads of the model."""
    s = config.scorer
    if s.kind == "standalone":
        return None
    if s.kind == "cot_influx":
        return partial(shot_states, layer=s.layer, positions=s.positions)
    if s.kind in POOLED:
        return partial(piece_states if s.apart else piece_features, layer=s.layer)
    return partial(early_features, layer=s.layer, blind=s.kind == "llmlingua2")


def _scorer(config: Config, model: TransformerConfig) -> tuple[nnx.GraphDef, Params]:
    s = config.scorer
    if s.width % s.heads:
        raise UserError(f"config.scorer.width is {s.width}: expected a multiple of config.scorer.heads = {s.heads}")
    if s.kind == "llmlingua2" and s.width // s.heads % 2:
        raise UserError(f"config.scorer.width is {s.width}: expected an even multiple of the heads, {s.heads}")
    if s.kind != "standalone" and not 0 <= s.layer <= model.n_layers:
        raise UserError(f"config.scorer.layer is {s.layer}: expected 0 to {model.n_layers}, the model's layers")
    inputs, rngs = model.vocab_size if s.kind == "standalone" else model.d_model, nnx.Rngs(config.seed + 1)
    if s.kind == "cot_influx":
        scorer = InfluxScorer(InfluxConfig(inputs, s.width, s.positions, s.padding), rngs)
    else:
        scorer = Scorer(
            ScorerConfig(s.kind, inputs, s.width, s.depth, s.heads, s.budget, s.apart, s.groups, s.products), rngs
        )
    graph, state = nnx.split(scorer)
    return graph, nnx.to_pure_dict(state)
