"""A finished (or interrupted) training run, ready to be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array

from rcp.config import Config
from rcp.config_file import differing_keys, load_config
from rcp.infer.saved_run import config_of_run, say_if_interrupted
from rcp.nn.pieces import mean_states
from rcp.nn.pruner import Scores
from rcp.nn.reader import Reading
from rcp.nn.sight import PieceStates
from rcp.train.build import Build, build, make_task
from rcp.train.loop import restore
from rcp.train.table import TABLES
from rcp.types import Batch, UserError

Look = Callable[[Batch], Any]
MAY_DIFFER = ("eval.", "task.", "data.", "parallel.", "model.dtype")
"""Keys that may differ from training: what is evaluated, and how it is computed."""


@dataclass(frozen=True)
class Trained:
    """A run's networks with the parameters of its newest checkpoint.

    `weights` is (trained parameters, frozen ones), on the device. The pure functions below take it as an argument, so
    that a compiled function does not hold the weights as constants.
    """

    config: Config
    build: Build
    weights: tuple[Any, Any]

    def score(self, weights: tuple[Any, Any], batch: Batch, seen: Array | None, budget: Array | None = None) -> Scores:
        """The pruner's scores: logits [batch, tokens] and [batch, segments]. Pure.

        `seen`: what `look` returns. `budget`: context tokens to keep, int32 [batch]; needed where
        `config.scorer.budget` says that they count.
        """
        return self.build.networks.score(weights[0], batch, seen, budget)

    def look(self) -> Look:
        """What the scorer sees of a batch, as a compiled function of it."""
        networks, scorer = self.build.networks, self.config.scorer
        if not scorer.apart:
            features = jax.jit(lambda weights, batch: networks.features(weights[0], weights[1], batch))
            return partial(features, self.weights)

        def states(weights: tuple[Any, Any], tokens: Array, lengths: Array) -> Array:
            return mean_states(networks.model_of(*weights), tokens, lengths, scorer.layer)

        return PieceStates(partial(jax.jit(states), self.weights), blind=networks.blind)

    def read(self, weights: tuple[Any, Any], batch: Batch) -> Reading:
        """The reader's verdict on whole or compacted prompts. Pure."""
        return self.build.networks.read(*weights, batch)

    @cached_property
    def model(self) -> Any:
        """The reader as an NNX module."""
        return self.build.networks.model_of(*self.weights)


def check_groups(trained: Config, groups: Sequence[str], workdir: str | Path, key: str) -> None:
    """Checks that a scorer which tells groups of prompts apart has weights of their own for these.

    `trained`: config of the run in `workdir`. `key`: what brings the groups, for the message.

    Raises:
      UserError: one more group than those of its training, or one of them by another number.
    """
    if trained.scorer.groups == 1:
        return
    known = make_task(trained).groups
    moved = [name for number, name in enumerate(groups) if name in known and known.index(name) != number]
    if len(groups) > len(known) or moved:
        raise UserError(
            f"{key} brings the groups {', '.join(map(repr, groups))}: expected at most {len(known)}, in the order "
            f"{', '.join(map(repr, known))}, for which the scorer of {workdir} has weights "
            f"(config.scorer.groups = {trained.scorer.groups})"
        )


def load_trained(workdir: str | Path, overrides: Sequence[str] = ()) -> Trained:
    """The run in `workdir`; an interrupted one says so on stderr. `overrides` are config flags of keys in `MAY_DIFFER`.

    Raises:
      UserError: no run there, nothing trained yet, a checkpoint of another config, or none that can be read; a flag for
        what training has decided; a task with groups that the scorer does not know.
    """
    workdir = Path(workdir)
    saved = config_of_run(workdir, "configs/X.py")
    trained_with, config = load_config(saved), load_config(saved, overrides)
    if trained_with.dynamic.on or trained_with.eviction.tasks:
        name = "docs/dynamic.md" if trained_with.dynamic.on else "docs/eviction.md"
        raise UserError(f"{workdir} holds a run that prunes caches, not prompts: how it is used is in {name}")
    if decided := [key for key in differing_keys(trained_with, config) if not key.startswith(MAY_DIFFER)]:
        raise UserError(
            f"config.{decided[0]} was decided in training ({workdir}); only these may be set now: "
            + ", ".join(f"config.{key}" for key in MAY_DIFFER)
        )
    task = make_task(config)
    check_groups(trained_with, task.groups, workdir, f"config.task.name = {config.task.name!r}")
    # Built as it was trained, since its checkpoints have the shapes of its own data; then given what is evaluated.
    model = replace(trained_with.model, dtype=config.model.dtype)
    built = build(replace(trained_with, model=model, parallel=config.parallel))
    state, frozen = restore(built.stages, trained_with, workdir)
    networks = replace(built.networks, max_answer=config.data.max_answer)
    built = replace(built, task=task, networks=networks)
    say_if_interrupted(workdir, built.stages[-1], int(state.step))
    needed = {name: part for name, part in frozen.items() if name not in TABLES}  # those are of the training examples
    return Trained(config, built, jax.device_put((state.params, needed)))
