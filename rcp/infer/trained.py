"""A finished (or interrupted) training run, ready to be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from rcp.config import Config
from rcp.config_file import load_config
from rcp.nn.pruner import Scores
from rcp.nn.reader import Reading
from rcp.train.build import Build, build
from rcp.train.loop import restore
from rcp.types import Batch, UserError


@dataclass(frozen=True)
class Trained:
    """A run's networks with the parameters of its newest checkpoint.

    `weights` is (trained parameters, frozen ones), on the device. The two functions below take it as an argument, so
    that a compiled function does not hold the weights as constants.
    """

    config: Config
    build: Build
    weights: tuple[Any, Any]

    def score(self, weights: tuple[Any, Any], batch: Batch) -> Scores:
        """The pruner's scores: logits [batch, tokens] and [batch, segments]. Pure."""
        params, frozen = weights
        networks = self.build.networks
        return networks.score(params, batch, networks.features(params, frozen, batch))

    def read(self, weights: tuple[Any, Any], batch: Batch) -> Reading:
        """The reader's verdict on whole or compacted prompts, without its log-probabilities (which are large). Pure."""
        reading = self.build.networks.read(*weights, batch)
        return reading._replace(log_probs=None, answer_mask=None)  # type: ignore[arg-type]

    @cached_property
    def model(self) -> Any:
        """The reader as an NNX module."""
        return self.build.networks.model_of(*self.weights)


def load_trained(workdir: str | Path, overrides: Sequence[str] = ()) -> Trained:
    """The run in `workdir`; `overrides` are config flags such as "--config.eval.examples=50".

    Raises:
      UserError: no run there, nothing trained yet, a checkpoint of another config, or none that can be read.
    """
    workdir = Path(workdir)
    saved = workdir / "config.json"
    if not saved.exists():
        raise UserError(
            f"{workdir} holds no run (no config.json); train one: rcp train --config=configs/X.py --workdir={workdir}"
        )
    config = load_config(saved, overrides)
    built = build(config)
    state, frozen = restore(built.stages, config, workdir)
    return Trained(config, built, jax.device_put((state.params, frozen)))
