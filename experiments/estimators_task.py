"""The end task of `experiments.estimators`: a pruner trained by one gradient estimator alone, and what it then keeps.

The reader of a from-scratch config is trained once. Then the config's scorer is trained anew under each estimator, from
the same parameters, on the same examples in the same order, with the same optimizer: only the estimate of the gradient
of E[1 / (1 + NLL of the answer)] with respect to the segments' logits differs. Every draw keeps the same number of
segments. The reader reads through the mask, which is what lets the pathwise estimators differentiate it; evaluation
keeps the best segments by score and reads exact masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.json_cell import cell
from rcp import sampling
from rcp.config import Config
from rcp.config_file import load_config
from rcp.config_saved import fingerprint
from rcp.data.pipeline import TrainPipeline, eval_batches
from rcp.evaluate.tables import bootstrap_means, interval
from rcp.nn import pruner
from rcp.nn.layout import in_context, of_segment, segment_exists
from rcp.nn.reader import Reading
from rcp.policies import Oracle, Policy, Random
from rcp.sampling import ESTIMATORS
from rcp.train.build import Build, build
from rcp.train.loop import run
from rcp.train.optim import make_optimizer
from rcp.train.stages import encode_training
from rcp.types import Batch, UserError

RATE = 0.25
RESAMPLES = 2000
REFERENCES: dict[str, Policy] = {"random": Random(), "needed": Oracle()}
"""Rows that nothing is trained for: segments at random, and those that the task says are needed first."""


class Task(NamedTuple):
    """A config, its run, and the parameters of the reader and of the untrained scorer."""

    config: Config
    built: Build
    reader: Any
    scorer: Any


def task_of(path: str, folder: Path) -> Task:
    """Trains the reader of a from-scratch config in a folder of its own in `folder`, or takes the one that is there.

    Raises:
      UserError: a config of a published model.
    """
    config = load_config(path)
    if config.model.name != "scratch":
        raise UserError(f"--task-config={path}: expected a config of a model from scratch, not {config.model.name}")
    config = replace(config, train=replace(config.train, steps=1))
    built = build(config)
    reader, last = built.stages[0], built.stages[-1]
    trained = run([reader], config, folder / f"reader-{fingerprint(config)}").state.params["model"]
    scorer = {"pruner": last.init_state(None).params["pruner"]}
    return Task(config, built, *jax.device_put((trained, scorer)))


def described(path: str, config: Config) -> dict[str, Any]:
    """What of a cell's settings is the config's: its file and variant, and what decides the numbers."""
    file, _, variant = Path(path).name.partition(":")
    return {
        "config": Path(file).stem + (f":{variant}" if variant else ""),
        "fingerprint": fingerprint(config),
        "examples": config.eval.examples,
        "batch_size": config.eval.batch_size,  # a batch's random scores are drawn from one key
    }


def kept_segments(batch: Batch) -> Int[Array, " batch"]:
    """How many segments are kept of each example: a quarter of them, at least one."""
    return sampling.count_of_rate(jnp.sum(segment_exists(batch), axis=1, dtype=jnp.int32), RATE)


def read(task: Task, batch: Batch, masks: Float[Array, "batch segments"]) -> Reading:
    """The prompts through masks of segments; everything but the context is kept."""
    keep = jnp.where(in_context(batch), of_segment(masks, batch), 1.0)
    return task.built.networks.read({}, {"model": task.reader}, batch, keep)


def logits_of(task: Task, scorer: Any, batch: Batch) -> Float[Array, "batch segments"]:
    """The scores of segments; -inf where there is none."""
    scores = task.built.networks.score(scorer, batch, None, pruner.budget_of_rate(batch, RATE))
    return pruner.segment_logits(scores, batch)


def gradients(task: Task, logits: Array, batch: Batch, key: Array, samples: int, **chosen: Any) -> sampling.Estimate:
    """Of every example's expected reward with respect to its logits, [batch, segments], from so many draws each."""

    def of_one(key: Array, logits: Array, count: Array, example: Batch) -> sampling.Estimate:
        repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (samples, *x.shape)), example)

        def reward(masks: Array) -> Array:
            return 1.0 / (1.0 + read(task, repeated, masks).nll)

        return sampling.estimate(
            key=key, logits=logits, k=count, reward=reward, samples=samples, max_k=logits.shape[0], **chosen
        )

    return jax.vmap(of_one)(jax.random.split(key, len(logits)), logits, kept_segments(batch), batch)


def make_step(task: Task, optimizer: optax.GradientTransformation, samples: int, **chosen: Any) -> Callable[..., Any]:
    """(scorer, optimizer state, batch, key) -> the same two after a step, and the mean reward; compiled."""

    def step(scorer: Any, moments: Any, batch: Batch, key: Array) -> tuple[Any, Any, Array]:
        logits, pull = jax.vjp(lambda params: logits_of(task, params, batch), scorer)
        found = gradients(task, logits, batch, key, samples, **chosen)
        updates, moments = optimizer.update(pull(-found.gradient / len(logits))[0], moments, scorer)
        return optax.apply_updates(scorer, updates), moments, jnp.mean(found.reward_mean)

    return jax.jit(step)


def trained(task: Task, seed: int, steps: int, samples: int, **chosen: Any) -> dict[str, Any]:
    """Trains the scorer under one estimator: what `evaluated` says of it, every step's mean reward, seconds a step."""
    config = task.config
    optimizer = make_optimizer(config.optim, steps, ("pruner",))
    encoded = encode_training(config, task.built.task, task.built.tokenizer, config.model.max_positions)
    stream = TrainPipeline(encoded, batch_size=config.data.batch_size, seed=seed)
    step = make_step(task, optimizer, samples, **chosen)
    scorer, moments, rewards, seconds = task.scorer, optimizer.init(task.scorer), [], []
    for number in range(steps):
        batch = jax.tree.map(jnp.asarray, next(stream))
        start = time.perf_counter()
        scorer, moments, reward = step(scorer, moments, batch, jax.random.fold_in(jax.random.key(seed), number))
        rewards.append(float(reward))
        seconds.append(time.perf_counter() - start)
    values = evaluated(task, partial(logits_of, task, scorer))
    return {**values, "rewards": rewards, "seconds": float(np.median(seconds))}


def evaluated(task: Task, logits: Callable[[Batch], Array]) -> dict[str, Any]:
    """Exact match on the config's test examples with its interval, and answer NLL, at the best segments by `logits`."""

    def one(batch: Batch) -> tuple[Array, Array]:
        mask: Bool[Array, "batch segments"] = sampling.top_k(logits(batch), kept_segments(batch)).mask
        reading = read(task, batch, mask.astype(jnp.float32))
        return reading.exact, reading.nll

    config, found, judge = task.config, [], jax.jit(one)
    batches, _ = eval_batches(
        task.built.task,
        task.built.tokenizer,
        "test",
        config.eval.examples,
        batch_size=config.eval.batch_size,
        lengths=config.data.lengths,
        max_segments=config.data.max_segments,
        max_answer=config.data.max_answer,
    )
    for batch in batches:
        exact, nll = judge(jax.tree.map(jnp.asarray, batch))
        found.append(np.stack([exact, nll])[:, batch.weight > 0].astype(np.float64))
    exact, nll = np.concatenate(found, axis=1)
    low, high = interval(bootstrap_means(exact[None], RESAMPLES, [0])[0])
    return {"exact_match": float(exact.mean()), "low": low, "high": high, "nll": float(nll.mean()), "n": len(exact)}


def reference(task: Task, name: str, seed: int) -> dict[str, Any]:
    """What a row of `REFERENCES` has."""

    def logits(batch: Batch) -> Array:
        return pruner.segment_logits(REFERENCES[name].scores(batch, key=jax.random.key(seed)), batch)

    return evaluated(task, logits)


def task_rows(
    variants: dict[str, dict[str, Any]], folder: Path, path: str, steps: int, samples: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """A row a reference or estimator and seed, each in a cell under `folder`; computes those that are missing."""
    task = task_of(path, folder)
    rows = []
    for seed in seeds:
        for label in (*REFERENCES, *variants):
            chosen = variants.get(label, {})
            work = {"steps": steps, "samples": samples, **chosen} if chosen else {}
            settings = {**described(path, task.config), "seed": seed, "rate": RATE, **work}
            compute = partial(trained, task, seed, **work) if chosen else partial(reference, task, label, seed)
            values = cell(folder / f"seed{seed}" / f"{label.replace(' ', '_')}.json", settings, compute)
            kind = ESTIMATORS[chosen["name"]]._asdict() if chosen else {}
            rows.append({"estimator": label, **settings, **kind, **values})
    return rows
