"""A trained run of learned eviction, as a way to prune contexts (`rcp.infer.context.ContextModel`)."""

from __future__ import annotations

from pathlib import Path

from rcp.config_file import load_config
from rcp.eviction.learned import Learned, Weights
from rcp.eviction.prompt import Eviction
from rcp.infer.saved_run import config_of_run, say_if_interrupted
from rcp.pretrained import Pretrained
from rcp.train.eviction_stages import eviction_stages, scorer_shape
from rcp.train.eviction_step import ALLOTMENTS
from rcp.train.loop import restore
from rcp.types import UserError

TRAINED_WITH = "configs/eviction.py"


def load_eviction(workdir: str | Path, loaded: Pretrained) -> Eviction:
    """How the run in `workdir` prunes: its scorer as a policy, with the allotment and the sinks it was trained for.

    A run that was interrupted in its last stage says so on stderr.

    Raises:
      UserError: no such run there, nothing trained yet, or it was trained for other weights than those loaded.
    """
    workdir = Path(workdir)
    config = load_config(config_of_run(workdir, TRAINED_WITH))
    if not config.eviction.tasks:
        raise UserError(f"{workdir} holds a run of another kind: expected one of {TRAINED_WITH}")
    stages = eviction_stages(config, loaded)
    state, _ = restore(stages, config, workdir)
    say_if_interrupted(workdir, stages[-1], int(state.step))
    c = config.eviction
    policy = Learned(scorer_shape(config, loaded.config), Weights(state.params["pruner"]), c.measures, c.question)
    return Eviction(policy, ALLOTMENTS[c.across], sinks=c.sinks)
