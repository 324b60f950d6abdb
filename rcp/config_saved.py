"""The configuration beside a run: `config.json`, and the fingerprint that its checkpoints carry."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from rcp.config import Config, ParallelConfig
from rcp.config_file import deciding_keys, differing_keys, load_config, to_dict
from rcp.types import UserError


def fingerprint(config: Config) -> str:
    """A short hash of the keys that decide the numbers of a run, as far as they differ from the defaults.

    So a key that is added later, with a default that changes nothing, changes no earlier run's fingerprint.
    """
    usual, mine = deciding_keys(Config()), deciding_keys(config)
    identity = {key: value for key, value in mine.items() if key not in usual or usual[key] != value}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Config, now: Config) -> list[str]:
    """A line for each key that decides the numbers of a run and differs."""
    old, new = deciding_keys(before), deciding_keys(now)
    return [
        f"  config.{k}: {old.get(k, '(not set)')!r} there, {new.get(k, '(not set)')!r} now"
        for k in differing_keys(before, now)
    ]


def check_workdir(workdir: Path) -> None:
    """Raises `UserError` where no run can be kept in `workdir`: a file, or a folder that cannot be written or made."""
    found = workdir.absolute()
    while not os.path.exists(found):  # also where it may not be looked at
        found = found.parent
    if not os.path.isdir(found):
        raise UserError(f"--workdir={workdir}: {found} is a file; expected a folder, or one to be made")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: the folder {found} cannot be written")


def save_config(config: Config, workdir: Path, *, begun: bool = True, writing: bool = True) -> None:
    """Writes `workdir/config.json`, after a check of a resumed run's configuration against the one there.

    What names this process among several is left out: it says nothing about the run, and evaluation is one process.

    Args:
      begun: whether anything that was trained is kept there. Where nothing is, the configuration there was refused or
        stopped before its first checkpoint: it decides nothing and is written over.
      writing: False only checks (for all processes but the first).

    Raises:
      UserError: the folder holds a run of another configuration; the message names the keys that differ. Or it
        cannot be written.
    """
    path = workdir / "config.json"
    if begun and path.exists():
        before = load_config(path)
        differ = differences(before, config)
        if config.train.steps < before.train.steps:
            differ.append(f"  config.train.steps: {before.train.steps} there, {config.train.steps} now (may only grow)")
        elif config.train.steps > before.train.steps and config.eviction.tasks and config.eviction.answer_steps:
            why = "may not change where a stage with eviction.answer_steps goes on from them"
            differ.append(f"  config.train.steps: {before.train.steps} there, {config.train.steps} now ({why})")
        if differ:
            raise UserError(
                f"{workdir} holds a run of another config; choose another --workdir or restore these keys:\n"
                + "\n".join(differ)
            )
    if not writing:
        return
    p = config.parallel
    alone = ParallelConfig(mode=p.mode, devices=p.devices, shard_params=p.shard_params)
    text = json.dumps(to_dict(replace(config, parallel=alone)), indent=2) + "\n"
    partial = path.with_suffix(".json.tmp")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: the run's config cannot be written there: {error}") from error
