"""A small regression in two stages, with a pipeline that can be resumed: what the training tests run.

`python toy.py WORKDIR STEPS KILLS` trains it in child processes, of which the first KILLS are killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rcp.config import Config, OptimConfig, TrainConfig
from rcp.train.loop import Stage, run
from rcp.train.parallel import use_compile_cache
from rcp.train.state import TrainState, new_state

FEATURES = 5


class ToyBatch(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    poison: np.ndarray


class ToyPipeline:
    """Endless random batches; batch number n depends on n alone. `poison`: numbers of batches that hold a NaN."""

    def __init__(self, batch: int = 16, poison: tuple[int, ...] = (), pause: float = 0.0):
        self.batch, self.poison, self.pause, self.count = batch, poison, pause, 0

    def __next__(self) -> ToyBatch:
        time.sleep(self.pause)
        rng = np.random.default_rng(self.count)
        x = rng.normal(size=(self.batch, FEATURES)).astype(np.float32)
        y = x @ np.arange(FEATURES, dtype=np.float32)
        bad = np.full(self.batch, np.nan if self.count in self.poison else 0.0, np.float32)
        index = np.arange(self.batch, dtype=np.int32) + self.batch * self.count
        self.count += 1
        return ToyBatch(x, y, index, bad)

    def get_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def toy_step(optimizer: optax.GradientTransformation, partition: str):
    """Least squares with noise drawn for each example from (key, step, index), as the real steps draw."""

    def step(state: TrainState, frozen, batch: ToyBatch, *, axis_name: str | None):
        base = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def noise(index):
            return jax.random.normal(jax.random.fold_in(base, index), (FEATURES,))

        def loss_fn(params):
            x = batch.x + 0.1 * jax.vmap(noise)(batch.index)
            return jnp.mean((x @ params[partition]["w"] * frozen["scale"] - batch.y) ** 2) + jnp.mean(batch.poison)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        if axis_name:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        finite = jnp.isfinite(optax.global_norm(grads)) & jnp.isfinite(loss)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        bad_run = jnp.where(finite, 0, state.aux["bad_run"] + 1)
        metrics = {"loss": loss, "square": loss, "nonfinite_run": bad_run.astype(jnp.float32)}
        metrics["grad_norm"] = optax.global_norm(grads)
        return state._replace(
            step=state.step + 1, params=params, opt_state=opt_state, aux={"bad_run": bad_run}
        ), metrics

    return step


def toy_state(optimizer: optax.GradientTransformation, partition: str = "pruner", seed: int = 0) -> TrainState:
    params = {partition: {"w": jax.random.normal(jax.random.key(seed), (FEATURES,))}}
    return new_state(seed, params, optimizer.init(params), {"bad_run": jnp.zeros((), jnp.int32)})


def toy_stages(
    first: int = 10, second: int = 20, *, pause: float = 0.0, batch: int = 16, poison: tuple[int, ...] = ()
) -> list[Stage]:
    """A stage "reader" whose result scales the features of the stage "pruner"."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))

    def frozen(previous):
        return {"scale": jnp.ones(()) if previous is None else jnp.abs(previous["model"]["w"]).sum()}

    def stage(name: str, partition: str, steps: int) -> Stage:
        return Stage(
            name=name,
            steps=steps,
            step=toy_step(optimizer, partition),
            init_state=lambda previous: toy_state(optimizer, partition),
            frozen=frozen,
            make_pipeline=lambda: ToyPipeline(batch, poison, pause),
            count_tokens=lambda batch: batch.x.size,
        )

    return [stage("reader", "model", first), stage("pruner", "pruner", second)]


def toy_config(steps: int = 20, *, every: int = 5, log_every: int = 1, max_nonfinite: int = 3) -> Config:
    train = TrainConfig(steps=steps, log_every=log_every, checkpoint_every=every)
    return replace(Config(), train=train, optim=OptimConfig(max_nonfinite=max_nonfinite))


def train_in_a_child(folder: Path, steps: int) -> int:
    """The pid of a forked process that trains and leaves final.npy. The parent must not have used jax yet."""
    pid = os.fork()
    if pid:
        return pid
    use_compile_cache()
    result = run(toy_stages(10, steps, pause=0.005), toy_config(steps), folder)
    np.save(folder / "final.npy", result.state.params["pruner"]["w"])
    os._exit(0)


def kill_and_restart(folder: Path, steps: int, kills: int) -> None:
    """Trains in children, of which each of the first `kills` is killed after some new steps, anywhere within a step."""
    rng = random.Random(20)
    metrics = folder / "metrics.jsonl"

    def logged() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    for _ in range(kills):
        enough = logged() + rng.randint(1, 20)
        child = train_in_a_child(folder, steps)
        while logged() < enough:
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit("the child ended before it had taken the steps it was to be killed after")
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            sys.exit("the child had ended before it was killed")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(train_in_a_child(folder, steps), 0)[1]))


if __name__ == "__main__":
    kill_and_restart(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
