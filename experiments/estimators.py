"""Every gradient estimator of `rcp.sampling` against the exact gradient of its own distribution, and the end task.

    rcp tables estimators [--output=runs/estimators] [--samples=16] [--repeats=5000] [--seeds=0,1,2]

Two problems with a random reward of interacting tokens, R(z) = c + b.z + z.A.z / 2: a small one whose gradient is
enumerated (all ordered draws, float64), and a large one whose gradient is the mean of a very large number of
leave-one-out draws, with its own standard error. Then a pruner for *chain* is trained under each estimator, with a
reader that is trained once (`experiments.estimators_task`). Every finished cell (problem, seed, estimator) is written
to OUTPUT/cells at once and not computed again; a cell of other settings, or a damaged one, is. Writes report.md, .csv,
.tex and .png, task.csv and .png; what the columns say stands in the report. About an hour of one core a task seed, and
5 minutes of two without the end task.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.estimators_problem import Problem, Truth, enumerated, reward
from experiments.estimators_report import write_report
from experiments.estimators_task import task_rows
from experiments.grid import integers, numbers
from experiments.json_cell import cell
from rcp import sampling
from rcp.sampling import ESTIMATORS
from rcp.types import UserError

ENUMERABLE = 1_000_000  # ordered draws
REFERENCE = {"plackett-luce": "reinforce-loo", "conditional-bernoulli": "conditional-loo"}
REFERENCE_BLOCKS = 400
TEMPERED = ("straight-through", "relaxed-threshold", "relaxed-successive")
AT_ONCE = 1 << 18  # numbers in one [estimates, samples, tokens] array


@partial(jax.jit, static_argnames=("name", "keep", "samples"))
def one(key, arrays, *, name: str, keep: int, samples: int, **settings) -> Float[Array, " tokens"]:
    """One estimate. Problems of one size share the compiled program."""
    logits, constant, linear, pairs = arrays
    return sampling.estimate(
        name, key, logits, keep, partial(reward, constant, linear, pairs), samples, **settings
    ).gradient


@partial(jax.jit, static_argnames=("name", "keep", "samples", "batch"))
def many(keys, arrays, *, batch: int, **settings) -> Float[Array, "repeats tokens"]:
    return jax.lax.map(lambda key: one(key, arrays, **settings), keys, batch_size=batch)


def draw(problem: Problem, repeats: int, *, stream: int, **settings) -> Float[np.ndarray, "repeats tokens"]:
    """Independent estimates; `stream` separates those of the reference from the others."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(problem.seed), stream), repeats)
    batch = max(1, min(repeats, AT_ONCE // (settings["samples"] * problem.tokens)))
    got = many(keys, problem.arrays(), batch=batch, keep=problem.keep, **settings)
    return np.asarray(got, np.float64)


def spread(estimates: Float[np.ndarray, "repeats tokens"]) -> tuple[float, float]:
    """Trace and Frobenius norm of the covariance of one estimate; the sampling noise of the norm is taken off."""
    covariance = np.cov(estimates, rowvar=False).reshape(estimates.shape[1], -1)
    trace = float(np.trace(covariance))
    return trace, float(np.sqrt(max(np.sum(covariance**2) - trace**2 / (len(estimates) - 1), 0.0)))


def referenced(problem: Problem, distribution: str, draws: int) -> dict[str, Any]:
    """The mean of `draws` leave-one-out draws in independent blocks, and its error; a cell of its own."""
    samples = max(2, draws // REFERENCE_BLOCKS)
    estimates = draw(problem, REFERENCE_BLOCKS, stream=1, name=REFERENCE[distribution], samples=samples)
    trace, frobenius = (number / REFERENCE_BLOCKS for number in spread(estimates))
    gradient = estimates.mean(0)
    return {"gradient": gradient.tolist(), "trace": trace, "frobenius": frobenius}


def measured(problem: Problem, truth: Truth, repeats: int, timings: int, **settings) -> dict[str, Any]:
    """The numbers of a cell; what they are stands in `estimators_report.EXPLANATION`."""
    estimates = draw(problem, repeats, stream=0, **settings)
    trace, frobenius = spread(estimates)
    mean, norm = estimates.mean(0), float(np.linalg.norm(truth.gradient))
    error = trace / repeats + truth.trace  # what the squared distance is by chance alone
    excess = float(np.sum((mean - truth.gradient) ** 2)) - error
    chance = np.sqrt(2) * (frobenius / repeats + truth.frobenius)  # at most; its standard deviation
    lengths = np.maximum(np.linalg.norm(estimates, axis=-1), 1e-30)
    return {
        "bias": float(np.sqrt(max(excess, 0.0))) / norm,
        "bias_squared": excess / norm**2,
        "bias_error": float(np.sqrt(error)) / norm,
        "bias_z": excess / chance if chance > 0 else 0.0,
        "variance": trace / norm**2,
        "cosine": float(np.mean(estimates @ truth.gradient / lengths)) / norm,
        "cosine_of_mean": float(mean @ truth.gradient / np.linalg.norm(mean)) / norm,
        "milliseconds": 1e3 * fastest(problem, timings, **settings),
        "reference_error": float(np.sqrt(truth.trace)) / norm,
    }


def fastest(problem: Problem, timings: int, **settings) -> float:
    key, arrays = jax.random.key(0), jax.tree.map(jnp.asarray, problem.arrays())
    seconds = []
    for _ in range(timings + 1):
        start = time.perf_counter()
        jax.block_until_ready(one(key, arrays, keep=problem.keep, **settings))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])  # the first compiles; other programs of the machine only ever add


def variants(temperatures: Sequence[float], steps: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Label -> arguments of `estimate`; an estimator with a setting has one row for each of its values."""
    rows: dict[str, dict[str, Any]] = {}
    for name in ESTIMATORS:
        if name in TEMPERED:
            rows |= {f"{name} {value:g}": {"name": name, "temperature": value} for value in temperatures}
        elif name == "imle":
            rows |= {f"{name} {value:g}": {"name": name, "step": value} for value in steps}
        else:
            rows[name] = {"name": name}
    return rows


def grid(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, one for each cell; computes those that are missing."""
    small = [Problem(arguments.tokens, arguments.keep, seed) for seed in arguments.seeds]
    large = (
        [Problem(arguments.large_tokens, arguments.large_keep, arguments.seeds[0])] if arguments.large_tokens else []
    )
    rows = []
    for problem in [*small, *large]:
        folder = arguments.output / "cells" / f"{problem.tokens}_{problem.keep}_seed{problem.seed}"
        exact = problem in small
        truths = {}
        for distribution in REFERENCE:
            if exact:
                truths[distribution] = enumerated(problem, distribution)
                continue
            settings = {**problem._asdict(), "distribution": distribution, "draws": arguments.reference_draws}
            path = folder / f"reference_{distribution}.json"
            values = cell(path, settings, partial(referenced, problem, distribution, arguments.reference_draws))
            truths[distribution] = Truth(np.asarray(values["gradient"]), values["trace"], values["frobenius"])
        for label, chosen in variants(arguments.temperatures, arguments.steps).items():
            kind = ESTIMATORS[chosen["name"]]
            work = {
                "repeats": arguments.repeats if exact else arguments.large_repeats,
                "timings": arguments.timings,
                "samples": arguments.samples,
                **chosen,
            }
            settings = {**problem._asdict(), **work, "reference": 0 if exact else arguments.reference_draws}
            compute = partial(measured, problem, truths[kind.distribution], **work)
            values = cell(folder / f"{label.replace(' ', '_')}.json", settings, compute)
            rows.append({**problem._asdict(), "estimator": label, **kind._asdict(), **values, "exact": exact, **work})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and writes the report; exit code 2 where the arguments make no sense."""
    parser = argparse.ArgumentParser(
        prog="rcp tables estimators", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/estimators"), help="folder of the cells and the report")
    add("--samples", type=int, default=16, help="draws of one estimate (default %(default)s)")
    add("--repeats", type=int, default=5000, help="independent estimates, small problem (default %(default)s)")
    add("--seeds", type=integers, default=(0, 1, 2), help="of the small problem; the large has the first (0,1,2)")
    add("--tokens", type=int, default=10, help="tokens of the small problem (default %(default)s)")
    add("--keep", type=int, default=3, help="how many of them are kept (default %(default)s)")
    add(
        "--large-tokens", type=int, default=256, help="tokens of the large problem; 0: without it (default %(default)s)"
    )
    add("--large-keep", type=int, default=64, help="how many of them are kept (default %(default)s)")
    add("--large-repeats", type=int, default=2000, help="independent estimates, large problem (default %(default)s)")
    add("--reference-draws", type=int, default=1_000_000, help="draws of its reference gradients (default %(default)s)")
    add("--temperatures", type=numbers, default=(0.1, 0.5, 1.0), help="of the relaxations (default 0.1,0.5,1)")
    add("--steps", type=numbers, default=(0.1, 1.0), help="of I-MLE (default 0.1,1)")
    add("--task-config", default="configs/chain.py:rl", help='of the end task; "": without it (default: %(default)s)')
    add("--task-steps", type=int, default=160, help="training steps of the end task (default %(default)s)")
    add("--task-samples", type=int, default=8, help="draws of one estimate there (default %(default)s)")
    add("--task-seeds", type=integers, default=(0, 1), help="of the draws and the order of examples there (0,1)")
    add("--task-temperatures", type=numbers, default=(0.5,), help="of the relaxations there (default 0.5)")
    add("--task-steps-imle", type=numbers, default=(1.0,), help="of I-MLE there (default 1)")
    add("--timings", type=int, default=20, help="timed calls; the fastest counts (default %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        check(arguments)
        rows, task = grid(arguments), []
        if arguments.task_config:
            chosen = variants(arguments.task_temperatures, arguments.task_steps_imle)
            work = (arguments.task_config, arguments.task_steps, arguments.task_samples, arguments.task_seeds)
            task = task_rows(chosen, arguments.output / "cells" / "task", *work)
    except UserError as error:
        print(f"estimators: {error}", file=sys.stderr)
        return 2
    print(write_report(arguments.output, rows, task), end="")
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for arguments with which there is nothing to measure."""
    if not arguments.seeds:
        raise UserError("--seeds: expected one at least")
    for tokens, keep, flag in (
        (arguments.tokens, arguments.keep, "keep"),
        (arguments.large_tokens, arguments.large_keep, "large-keep"),
    ):
        if (tokens or flag == "keep") and not 0 < keep < tokens:
            raise UserError(f"--{flag}={keep} must be less than the {tokens} tokens and at least 1")
    draws = float(np.prod(np.arange(arguments.tokens, arguments.tokens - arguments.keep, -1, dtype=float)))
    if draws > ENUMERABLE:
        raise UserError(f"--tokens and --keep have {draws:.3g} ordered draws to enumerate; at most {ENUMERABLE:,}")
    least = {"samples": 2, "repeats": 10, "large_repeats": 10, "timings": 1}
    least["reference_draws"] = 2 * REFERENCE_BLOCKS
    for name, bound in least.items():
        if getattr(arguments, name) < bound:
            raise UserError(f"--{name.replace('_', '-')} must be at least {bound}")
    scales = (arguments.temperatures, arguments.steps, arguments.task_temperatures, arguments.task_steps_imle)
    if any(value <= 0 for values in scales for value in values):
        raise UserError("temperatures and steps of I-MLE must be positive")
    if arguments.task_config and (arguments.task_steps < 1 or arguments.task_samples < 2):
        raise UserError("--task-steps must be at least 1 and --task-samples at least 2")


if __name__ == "__main__":
    raise SystemExit(main())
