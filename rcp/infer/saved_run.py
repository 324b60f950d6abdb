"""What the folder of a training run says of itself, whatever kind of run it is."""

from __future__ import annotations

import sys
from pathlib import Path

from rcp.train.export import is_export
from rcp.train.loop import Stage
from rcp.types import UserError


def config_of_run(workdir: Path, trained_with: str) -> Path:
    """The saved config of the run in `workdir`. `trained_with`: a config that makes such runs, for the message.

    Raises:
      UserError: no run there.
    """
    saved = workdir / "config.json"
    if not saved.exists():
        command = f"rcp train --config={trained_with} --workdir={workdir}"
        raise UserError(f"{workdir} holds no run (no config.json); train one: {command}")
    return saved


def say_if_interrupted(workdir: Path, stage: Stage, step: int) -> None:
    """Says on stderr where training stopped before its end."""
    if step < stage.steps:
        further = "" if is_export(workdir) else f" (to go on: rcp train --workdir={workdir})"
        said = f"training of the {stage.name} stopped at step {step} of {stage.steps}; what it learned so far is used"
        print(f"{workdir}: {said}{further}", file=sys.stderr)
