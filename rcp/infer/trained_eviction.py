"""A trained run of learned eviction, as a way to prune contexts (`rcp.infer.context.ContextModel`)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx

from rcp.config_file import load_config
from rcp.eviction.learned import Learned, Weights
from rcp.eviction.prompt import Eviction
from rcp.infer.saved_run import config_of_run, say_if_interrupted
from rcp.nn.transformer import Transformer
from rcp.pretrained import Pretrained
from rcp.train.eviction_stages import eviction_stages, scorer_shape
from rcp.train.eviction_step import ALLOTMENTS
from rcp.train.loop import restore
from rcp.train.networks import model_params
from rcp.types import UserError

TRAINED_WITH = "configs/eviction.py"


class TrainedEviction(NamedTuple):
    """What a run has trained: how it prunes, and the model, with low-rank updates where `tuned`."""

    model: Transformer
    eviction: Eviction
    tuned: bool


def load_tuned(workdir: str | Path, loaded: Pretrained) -> TrainedEviction:
    """The run in `workdir`: its scorer as a policy, with the allotment and the sinks it was trained for, and its model.

    A run that was interrupted in its last stage says so on stderr.

    Raises:
      UserError: no such run there, nothing trained yet, or it was trained for other weights than those loaded.
    """
    workdir = Path(workdir)
    config = load_config(config_of_run(workdir, TRAINED_WITH))
    if not config.eviction.tasks:
        raise UserError(f"{workdir} holds a run of another kind: expected one of {TRAINED_WITH}")
    stages = eviction_stages(config, loaded)
    state, frozen = restore(stages, config, workdir)
    say_if_interrupted(workdir, stages[-1], int(state.step))
    c = config.eviction
    policy = Learned(scorer_shape(config, loaded.config), Weights(state.params["pruner"]), c.measures, c.question)
    eviction = Eviction(policy, ALLOTMENTS[c.across], sinks=c.sinks)
    if "lora" not in state.params:
        return TrainedEviction(loaded.model, eviction, False)
    params = model_params(jax.device_put(state.params), frozen)
    return TrainedEviction(nnx.merge(nnx.split(loaded.model)[0], params), eviction, True)


def load_eviction(workdir: str | Path, loaded: Pretrained) -> Eviction:
    """How the run in `workdir` prunes caches of the model as it was loaded.

    Raises:
      UserError: as `load_tuned`; the run has updates of the model too, without which its scorer is not what it was.
    """
    found = load_tuned(workdir, loaded)
    if found.tuned:
        raise UserError(
            f"{workdir} holds a run that trained the model too (config.model.train 'lora'): expected one of a frozen "
            "model; rcp.infer.trained_eviction.load_tuned gives both"
        )
    return found.eviction
