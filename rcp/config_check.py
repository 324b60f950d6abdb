"""Checks a filled configuration: ranges, names, and keys that exclude each other."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from rcp.config import METHODS, OBJECTIVES, BudgetConfig, Config, EndpointConfig
from rcp.types import UserError


def nearest(word: str, known: Iterable[str], path: str = "") -> str:
    """The end of an error message: the known name nearest to `word`, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    prefix = f"{path}." if path else ""
    return f"; did you mean {prefix}{near[0]}?" if near else f"; known here: {', '.join(names)}"


def check(config: Config, where: Callable[[str], str]) -> None:
    """Checks ranges and names; a `UserError` names the key, where it was written (`where(key)`), what was expected."""

    def need(ok: bool, key: str, expected: str) -> None:
        if not ok:
            raise UserError(f"config key config.{key}{where(key)} should be {expected}, not {_get(config, key)!r}")

    counts = config.budget.keep_tokens
    need(all(n > 0 for n in config.eval.keep_tokens), "eval.keep_tokens", "numbers above 0")
    for key in ("budget.keep_rates", "eval.keep_rates"):
        rates = _get(config, key)
        given = bool(rates) or counts is not None or bool(key.startswith("eval") and config.eval.keep_tokens)
        need(given and all(0.0 < rate <= 1.0 for rate in rates), key, "keep rates in (0, 1]")
    need(counts is None or (bool(counts) and min(counts) > 0), "budget.keep_tokens", "numbers above 0")
    if counts is not None and config.budget.keep_rates not in ((), BudgetConfig.keep_rates):
        raise UserError(
            f"config.budget.keep_tokens{where('budget.keep_tokens')} is {list(counts)} and "
            f"config.budget.keep_rates{where('budget.keep_rates')} is {list(config.budget.keep_rates)}: give one of "
            "them (--config.budget.keep_rates=[] takes back the rates, --config.budget.keep_tokens=none the tokens)"
        )
    warm = config.warm_start
    need(bool(warm.objectives) or not warm.steps, "warm_start.objectives", "one or more where warm_start.steps > 0")
    for section, objectives in (("objectives", config.objectives), ("warm_start.objectives", warm.objectives)):
        for name in objectives:
            key = f"{section}.{name}"
            if name not in OBJECTIVES:
                raise UserError(f"unknown objective config.{key}{where(key)}{nearest(name, OBJECTIVES)}")
            need(objectives[name].steps >= 0, f"{key}.steps", "0 or more")
    for name in config.eval.methods:
        if name not in METHODS:
            raise UserError(
                f"unknown method {name!r} in config.eval.methods{where('eval.methods')}{nearest(name, METHODS)}"
            )
    for name in config.eval.runs:
        if name in METHODS:
            written = where(f"eval.runs.{name}")
            raise UserError(f"config.eval.runs.{name}{written}: {name} is a method's name; call the run something else")
    positive = (
        "data.batch_size data.max_segments data.max_answer train.log_every train.checkpoint_every train.keep "
        "train.steps policy.samples policy.updates optim.accumulate optim.max_nonfinite eval.examples eval.batch_size "
        "eval.bootstrap eval.samples "
        "model.lora_rank model.n_layers model.d_model model.n_heads model.n_kv_heads model.head_dim "
        "model.d_ff model.max_positions scorer.width scorer.heads scorer.groups relax.temperature scorer.positions "
        "reward.window data.phases data.repeats"
    )
    for key in positive.split():
        need(_get(config, key) > 0, key, "above 0")
    for key in ("data.train_examples", "reader.batch_size", "model.vocab_size"):
        need(_get(config, key) is None or _get(config, key) > 0, key, "above 0 or None")
    not_negative = (
        "optim.learning_rate optim.weight_decay optim.clip_norm policy.clip scorer.depth reader.learning_rate "
        "eval.shown eval.decode reader.steps warm_start.steps optim.warmup_steps reader.warmup_steps seed "
        "parallel.devices eval.seed eval.first"
    )
    for key in not_negative.split():
        need(_get(config, key) >= 0, key, "0 or more")
    need(0 <= config.policy.baseline_decay < 1, "policy.baseline_decay", "in [0, 1)")
    for key in ("data.lengths", "reader.lengths"):
        lengths = _get(config, key)
        ascending = lengths is None or (bool(lengths) and lengths[0] > 0 and list(lengths) == sorted(set(lengths)))
        need(ascending, key, "ascending, above 0")
    for key in ("train.prepare", "policy.logged"):  # tables with a row an example, of a model that stays as it is
        if _get(config, key):
            need(config.model.train == "frozen", "model.train", f'"frozen" where {key} is set')
            need(config.data.train_examples is not None, "data.train_examples", f"a number where {key} is set")
    if config.policy.logged:
        need("ppo" in config.objectives, "policy.logged", 'false but with the objective "ppo"')
        expected = 'false with the objective "reinforce", to which logged draws would be stale (use ppo)'
        need("reinforce" not in config.objectives, "policy.logged", expected)
        need("ppo" not in warm.objectives, "warm_start.objectives", 'without "ppo" where policy.logged is set')
        need(config.budget.granularity == "segment", "budget.granularity", '"segment" where policy.logged is set')
        need(config.policy.baseline != "self_critical", "policy.baseline", "another where policy.logged is set")
    used = config.objectives.keys() | (warm.objectives.keys() if warm.steps else set())
    if {"reinforce", "ppo"} & used:
        own = config.policy.baseline == "leave_one_out"
        need(not own or config.policy.samples > 1, "policy.samples", 'above 1 for policy.baseline "leave_one_out"')
        expected = 'false but with policy.baseline "leave_one_out": another is far off where draws earn the same'
        need(own or not config.policy.normalise, "policy.normalise", expected)
    independent = config.budget.granularity == "independent"
    if through := sorted({"nll", "kl", "budget"} & used):
        expected = f'one of token, segment, two_stage with the objective "{through[0]}", which needs a number to keep'
        need(not independent, "budget.granularity", expected)
    need(
        independent or config.eval.draw == "budget", "eval.draw", '"budget" unless budget.granularity is "independent"'
    )
    told = config.scorer.kind == "cot_influx" and config.scorer.budget
    need(not told, "scorer.budget", 'false with the kind "cot_influx", which knows no budget')
    pooled = config.scorer.kind in ("pooled", "linear")
    need(pooled or not config.scorer.apart, "scorer.apart", 'false but for the kinds "pooled" and "linear"')
    linear = config.scorer.kind == "linear"
    need(linear or config.scorer.groups == 1, "scorer.groups", '1 but for the kind "linear"')
    need(linear or not config.scorer.products, "scorer.products", 'false but for the kind "linear"')
    if "reinforce" in used:
        expected = '1 with the objective "reinforce", whose draws would be stale (use ppo, or policy.updates = 1)'
        need(config.policy.updates == 1, "policy.updates", expected)
    need(config.eval.temperature >= 0, "eval.temperature", "0 or more")
    need(0 < config.eval.top_p <= 1, "eval.top_p", "in (0, 1]")
    need(config.eval.samples == 1 or config.eval.temperature > 0, "eval.temperature", "above 0 where eval.samples > 1")
    judged = config.eval.samples == 1 or config.eval.decode > 0 or config.eval.reader == "openai"
    need(judged, "eval.decode", "above 0 where eval.samples > 1: so many tokens are decoded")
    for section in ("eval", "reward"):
        if _get(config, f"{section}.reader") == "openai":
            _check_endpoint(_get(config, f"{section}.endpoint"), f"{section}.endpoint", need)
    config.eviction.check(need)
    config.dynamic.check(need)
    need(not (config.dynamic.on and config.eviction.tasks), "dynamic.on", "false where eviction.tasks is set")
    p = config.parallel
    need(p.num_processes > 0, "parallel.num_processes", "above 0")
    need(0 <= p.process_id < p.num_processes, "parallel.process_id", "at least 0 and below parallel.num_processes")
    fine = p.num_processes == 1 if p.coordinator is None else p.coordinator.rpartition(":")[2].isdigit()
    need(fine, "parallel.coordinator", '"host:port" of process 0')
    need(not (p.distributed and p.coordinator), "parallel.distributed", "false where parallel.coordinator is given")
    sharded_pmap = p.shard_params and p.mode == "pmap"
    need(not sharded_pmap, "parallel.shard_params", 'false unless parallel.mode is "mesh"')


def _check_endpoint(endpoint: EndpointConfig, key: str, need: Callable[[bool, str, str], None]) -> None:
    url = endpoint.base_url
    fine = url.startswith(("http://", "https://")) and bool(url.partition("://")[2].strip("/"))
    need(fine, f"{key}.base_url", 'an address such as "http://127.0.0.1:8000/v1" where the reader is "openai"')
    for name in ("concurrency", "timeout", "max_new"):
        need(getattr(endpoint, name) > 0, f"{key}.{name}", "above 0")
    need(endpoint.retries >= 0, f"{key}.retries", "0 or more")
    need(not (endpoint.logprobs and endpoint.api == "chat"), f"{key}.logprobs", 'false where api is "chat"')


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value
