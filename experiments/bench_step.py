"""What the pruner adds to a training step: the whole step over the same step's frozen-model work.

    python -m experiments.bench_step [--config=configs/facts.py] [--repeats=5] [--output=X.json]

Frozen-model work is what any method of this kind pays: the early features, and the reading of prompts that are already
as short as the draws make them. The rest is the sampler, compaction, the scorer forward and backward (once for each of
`policy.updates`), the objectives and the optimizer. What a run computes once (`train.prepare`) is looked up, in tables
of zeros, in both. Both are compiled, run in turn on the same batch (which of the two is first changes every time), and
compared by the median of the per-repeat ratios. The target is a ratio of at most 1.25. For configs of a pretrained
model and an objective that draws (facts: both, rl; rcp_math).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rcp.config import Config
from rcp.config_file import load_config
from rcp.nn import pruner
from rcp.nn.pruner import Scores
from rcp.train.build import Build, build
from rcp.train.parallel import use_compile_cache
from rcp.train.table import TABLES
from rcp.types import Batch, UserError

TARGET = 1.25
DRAWING = {"ppo", "reinforce"}


def frozen_work(built: Build) -> Callable[..., Any]:
    """The early features of a batch, and a reading of it under each draw: `prompts` have a leading axis of samples."""

    def work(frozen: Any, batch: Batch, prompts: Batch) -> Any:
        def one(short: Batch) -> Any:
            reading = built.networks.read_compacted({}, frozen, short)
            return reading.nll_sum, reading.exact

        return built.networks.features({}, frozen, batch), jax.lax.map(one, prompts)

    return jax.jit(work)


def draw(config: Config, batch: Batch, length: int) -> Batch:
    """`policy.samples` different draws of each prompt at the largest budget, compacted to the step's own length."""
    scores = Scores(jnp.zeros(batch.tokens.shape), jnp.zeros(batch.support.shape))
    rates, tokens = config.budget.keep_rates, config.budget.keep_tokens
    budget = jnp.full(len(batch.tokens), max(tokens)) if tokens else pruner.budget_of_rate(batch, max(rates))

    def one(key: jax.Array) -> Batch:
        keys = jax.random.split(key, len(batch.tokens))
        keep = pruner.prune(scores, batch, budget, granularity=config.budget.granularity, keys=keys).keep
        return pruner.compact(batch, keep, length)

    return jax.block_until_ready(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), config.policy.samples)))


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat, interleaved, in an order that turns round every time."""
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            jax.block_until_ready(runs[name]())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def timed(path: str, repeats: int) -> tuple[Config, dict[str, list[float]]]:
    """The config, and the seconds of a step's frozen-model work and of the whole step.

    Raises:
      UserError: the config has no frozen pretrained model, or draws no masks.
    """
    config = load_config(path, [])
    if config.model.name == "scratch" or config.model.train != "frozen":
        raise UserError(f"{path} has no frozen pretrained model to compare with")
    if not DRAWING & set(config.objectives):
        raise UserError(f"{path} draws no masks: expected one of {', '.join(sorted(DRAWING))}")
    built = build(config)
    stage = built.stages[-1]
    tables = {s.name: s.init_state(None).params[s.name] for s in built.stages if s.name in TABLES}
    state, frozen = jax.device_put((stage.init_state(None), stage.frozen(tables or None)))
    batch = jax.tree.map(jnp.asarray, next(stage.make_pipeline()))
    step = jax.jit(lambda s, f, b: stage.step(s, f, b, axis_name=None))
    work, prompts = frozen_work(built), draw(config, batch, built.pruned_lengths(batch.tokens.shape[1])[0])
    runs = {"frozen model": lambda: work(frozen, batch, prompts), "whole step": lambda: step(state, frozen, batch)}
    return config, measure(runs, repeats)


def main(argv: list[str] | None = None) -> int:
    """Prints both times and their ratio; exit code 1 where it misses the target, 2 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/facts.py")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args(argv)
    use_compile_cache()
    try:
        config, seconds = timed(arguments.config, arguments.repeats)
    except UserError as error:
        print(f"bench_step: {error}", file=sys.stderr)
        return 2
    ratio = statistics.median(a / b for a, b in zip(seconds["whole step"], seconds["frozen model"], strict=True))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:14s} {value:8.3f} s")
    print(f"{config.policy.samples} draws, {config.policy.updates} updates a step, {arguments.repeats} repeats")
    if arguments.output:
        report = {"seconds": median, "ratio": ratio, "target": TARGET, "repeats": arguments.repeats}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"a step takes {ratio:.2f} times its frozen-model work (target: at most {TARGET:g})")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
