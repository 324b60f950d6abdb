"""From a cell of a table to what is evaluated: a reader with a task, and a trained run where the method has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.grid import LENGTHS, READER, Method, Setting
from rcp.config import Config
from rcp.config_file import from_dict, load_config
from rcp.data.tasks.word_problems import WordProblems
from rcp.evaluate.subject import Subject, of_reader, of_run
from rcp.infer.trained import load_trained
from rcp.pretrained import Pretrained, load
from rcp.train.build import make_task
from rcp.types import UserError

ROOT = Path(__file__).resolve().parents[1]  # that paths of configs start from


@dataclass(frozen=True)
class Work:
    """Methods of a setting that are measured together: one reader, one seed; of prompts one trained run or none."""

    methods: tuple[Method, ...]
    seed: int


def subject_of(setting: Setting, work: Work, runs: Path) -> Subject:
    """The reader with the setting's task, and the trained pruner where the work has one.

    Raises:
      UserError: no such run (says how to train it) or of another reader; weights, data or task fields that are missing.
    """
    first = work.methods[0]
    config = config_of(setting, first, [method.policy for method in work.methods], work.seed)
    if not first.run:
        return of_reader(config, loaded_reader(config.model.name, config.model.dtype))
    folder, command = training(setting, first, work.seed, runs)
    if not (folder / "config.json").exists():
        try:
            load_config(ROOT / first.config, first.flags)
        except UserError as error:
            raise UserError(f"needs what this version cannot train: {error}") from None
        raise UserError(f"needs a trained run: {command}")
    reader = load_config(folder / "config.json").model.name
    if reader != setting.reader and Path(reader) != Path(setting.reader).absolute():
        raise UserError(f"needs a run with the reader {setting.reader} ({folder} has {reader}): {command}")
    return of_run(load_trained(folder, _flags(config)))


def training(setting: Setting, method: Method, seed: int, runs: Path) -> tuple[Path, str]:
    """The folder of a trained run, and the command that trains it."""
    other = setting.reader != READER
    folder = runs / (method.run + (f"-{setting.reader_label}" if other else "") + (f"_seed{seed}" if seed else ""))
    flags = [*method.flags, *([f"--config.model.name={setting.reader}"] if other else [])]
    flags += [f"--config.seed={seed}"] if seed else []
    return folder, " ".join([f"rcp train --config={method.config} --workdir={folder}", *flags])


@lru_cache(maxsize=1)
def loaded_reader(name: str, dtype: str) -> Pretrained:
    """A published model, kept for the next time that it is asked for."""
    return load(name, dtype=dtype)


def config_of(setting: Setting, method: Method, policies: Sequence[str], seed: int) -> Config:
    """What is evaluated, as a config. Word problems: as many examples as there are, where fewer than asked for.

    Raises:
      UserError: task fields or data that are missing; no problem of the number `setting.first`.
    """
    segments = max(setting.max_segments, method.task.get("shots", 0))
    values: dict[str, Any] = {
        "seed": seed,
        "task": {**setting.task, **method.task},
        "data": {"lengths": LENGTHS, "max_segments": segments, "max_answer": setting.max_answer},
        "model": {"name": setting.reader, "dtype": setting.dtype},
        "budget": {"granularity": method.granularity if method.draw == "budget" else "independent", "cut": "beginning"},
        "eval": {
            "keep_rates": setting.keep_rates,
            "keep_tokens": setting.keep_tokens,
            "methods": list(policies),
            "examples": setting.examples,
            "first": setting.first,
            "batch_size": setting.batch_size,
            "decode": setting.decode,
            "shown": 0,
            "split": setting.split,
            "draw": method.draw,
            "seed": 0 if method.draw == "budget" else seed,
        },
    }
    config = from_dict(values)
    task = make_task(config)
    if isinstance(task, WordProblems):
        there = len(task.problems(config.eval.split)) - setting.first
        if there <= 0:
            raise UserError(f"--first={setting.first}: {setting.title} has {there + setting.first} problems")
        if there < setting.examples:
            config = replace(config, eval=replace(config.eval, examples=there))
    return config


def _flags(config: Config) -> list[str]:
    """The flags that make a trained run's config evaluate what this one does: every field of its task among them."""
    task = {"name": config.task.name, **asdict(make_task(config))}  # pyright: ignore[reportArgumentType]
    data = ("lengths", "max_segments", "max_answer", "overlong")
    names = ("keep_rates", "keep_tokens", "methods", "examples", "first", "batch_size", "decode", "samples", "shown")
    names += ("split", "draw", "seed")
    values: dict[str, Any] = {f"task.{key}": value for key, value in task.items()}
    values |= {f"data.{name}": getattr(config.data, name) for name in data}
    values |= {f"eval.{name}": getattr(config.eval, name) for name in names}
    values |= {"model.dtype": config.model.dtype}
    return [f"--config.{key}={value!r}" for key, value in values.items()]
