"""What the pruner adds to a training step: the whole step over the same step's frozen-model work.

    python -m experiments.bench_step [--config=configs/facts.py] [--repeats=5] [--output=X.json]

Frozen-model work is what any method of this kind pays: the early features and the reading of every mask drawn. The
rest is the scorer forward and backward (once for each of `policy.updates`), the sampler, the objectives and the
optimizer. Both are compiled, run in turn on the same batch, and compared by their medians. For configs of a pretrained
model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from rcp.config import Config
from rcp.config_file import load_config
from rcp.nn import pruner
from rcp.nn.pruner import Scores
from rcp.train.build import Build, build
from rcp.train.parallel import use_compile_cache
from rcp.types import Batch


def frozen_work(built: Build, short: int):
    """The early features of a batch, and a reading of it under each of the masks bool [samples, batch, tokens]."""

    def work(frozen, batch: Batch, masks: Bool[Array, "samples batch tokens"]):
        def one(mask):
            reading = built.networks.read({}, frozen, pruner.compact(batch, mask, short))
            return reading.nll_sum, reading.exact

        return built.networks.features({}, frozen, batch), jax.lax.map(one, masks)

    return jax.jit(work)


def draw_masks(config: Config, batch: Batch) -> Bool[Array, "samples batch tokens"]:
    """`policy.samples` different masks an example at the highest keep rate; made before the clock starts."""
    scores = Scores(jnp.zeros(batch.tokens.shape), jnp.zeros(batch.support.shape))
    budget = pruner.budget_of_rate(batch, max(config.budget.keep_rates))

    def one(key):
        keys = jax.random.split(key, len(batch.tokens))
        return pruner.prune(scores, batch, budget, granularity=config.budget.granularity, keys=keys).keep

    return jax.vmap(one)(jax.random.split(jax.random.key(0), config.policy.samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/facts.py")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    use_compile_cache()
    config = load_config(arguments.config, [])
    if config.model.name == "scratch" or config.model.train != "frozen":
        raise SystemExit(f"{arguments.config} has no frozen pretrained model to compare with")
    built = build(config)
    stage = built.stages[-1]
    state, frozen = jax.device_put((stage.init_state(None), stage.frozen(None)))
    batch = jax.tree.map(jnp.asarray, next(stage.make_pipeline()))
    step = jax.jit(lambda s, f, b: stage.step(s, f, b, axis_name=None))
    short = built.pruned_lengths(batch.tokens.shape[1])[0]
    work, masks = frozen_work(built, short), draw_masks(config, batch)
    seconds: dict[str, list[float]] = {"frozen model": [], "whole step": []}
    runs = {"frozen model": lambda: work(frozen, batch, masks), "whole step": lambda: step(state, frozen, batch)}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median["whole step"] / median["frozen model"]
    for name, value in median.items():
        print(f"{name:14s} {value:8.3f} s")
    print(f"ratio          {ratio:8.3f}   ({config.policy.samples} draws, {config.policy.updates} updates a step)")
    if arguments.output:
        arguments.output.write_text(json.dumps({"seconds": median, "ratio": ratio}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
