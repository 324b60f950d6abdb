"""What a table measures: settings (prompts, reader, budgets) x methods x seeds; and the flags that choose them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rcp.data.tasks.base import SPLITS
from rcp.nn.pruner import Granularity
from rcp.types import UserError

LENGTHS = tuple(range(128, 16_384 + 1, 128))
"""Static lengths of prompts; a setting takes the smallest that holds all of its prompts."""
READER = "smollm2-135m-instruct"
RUNS = {"ours": "rcp_math", "cot_influx": "cot_influx", "llmlingua2": "llmlingua2"}
"""Methods that are trained: the config in configs/, and the folder under --runs, that they have."""


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
      name: in the table. policy: of `rcp.policies`.
      run: folder under --runs of a trained pruner, for the policy "ours". config, flags: what it is trained with.
      draw: of a trained pruner, `eval.draw` of a config.
      granularity: what is kept or dropped, where neither the policy nor a trained run says it.
      task: keys of the task that this method changes.
      about: for the legend.
    """

    name: str
    policy: str
    run: str = ""
    config: str = ""
    flags: tuple[str, ...] = ()
    draw: str = "budget"
    granularity: Granularity = "segment"
    task: dict[str, Any] = field(default_factory=dict)
    about: str = ""

    @property
    def single(self) -> str | None:
        """The key of its only column, where it heeds no budget."""
        return {"none": "0", "full": "1"}.get(self.policy, None if self.draw == "budget" else "1")


@dataclass(frozen=True)
class Setting:
    """Prompts, their reader and the budgets: what all rows of one part of a table share.

    Attributes:
      name: of its files, such as "gsm8k_16". title: in the table. at: its place on the x axis, where the table has one.
      task: the section `task` of a config. max_segments, max_answer: as in `data`.
      keep_tokens, keep_rates: the budgets.
      examples, first: so many problems, from that number on.
      exact: exact match is shown without decoding too, teacher-forced: for answers of a few tokens.
      benchmark: what published numbers stand beside it, where that is not the name of the task.
      split: of the task. What is tuned is tuned on "validation".
    """

    name: str
    title: str
    task: dict[str, Any]
    reader: str
    max_segments: int
    max_answer: int
    examples: int
    keep_tokens: tuple[int, ...]
    keep_rates: tuple[float, ...] = ()
    batch_size: int = 8
    decode: int = 0
    exact: bool = False
    dtype: str = "bfloat16"
    at: float = 0.0
    benchmark: str = ""
    split: str = "test"
    first: int = 0

    @property
    def label(self) -> str:
        """Of its files: the name, and the split where it is another than "test"."""
        return self.name if self.split == "test" else f"{self.name}_{self.split}"

    @property
    def heading(self) -> str:
        """Of its part of a table: title and reader; the split and the first problem where they are not as ever."""
        split = "" if self.split == "test" else f", {self.split} split"
        first = f", from problem {self.first} on" if self.first else ""
        return f"{self.title}{split}{first}, {self.reader}"

    @property
    def reader_label(self) -> str:
        """The reader's name, fit for a file."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.reader).strip("-")


@dataclass(frozen=True)
class CacheSetting(Setting):
    """Contexts whose cache is pruned. `aware`: policies see the question. `questions`: asked of a context, at most.

    `sinks`: first entries that every head keeps in every row.
    """

    aware: bool = False
    questions: int = 1
    sinks: int = 4


@dataclass(frozen=True)
class Table:
    """A table to be measured and drawn.

    Attributes:
      title, about: the heading, and what it shows in a sentence or two.
      ours: the name of the method that is compared with the others.
      x: what the figure has on its x axis: "tokens" (kept), "setting" (`Setting.at`), or "method" (bars).
      costs: whether seconds and break-even lengths are worth a part of their own.
    """

    title: str
    about: str
    settings: tuple[Setting, ...]
    methods: tuple[Method, ...]
    ours: str = "ours"
    x: str = "tokens"
    x_label: str = "context tokens kept"
    costs: bool = True


UNSET = {"cells": "OUTPUT/cells", "methods": "all", "keep_tokens": "none", "keep_rates": "none"}
"""What the help says is taken where a flag has no default."""


def parser_of(
    name: str,
    about: str | None,
    *,
    without: Sequence[str] = (),
    unset: Mapping[str, str] | None = None,
    **defaults: Any,
) -> argparse.ArgumentParser:
    """The flags that measured tables share.

    Args:
      without: flags that a table does not have, named as in what is parsed. unset: of some, as in `UNSET`.
      defaults: of some flags.
    """
    parser = argparse.ArgumentParser(
        prog=f"rcp tables {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(flag: str, default: Any, text: str, **settings: Any) -> None:
        key = flag.removeprefix("--").replace("-", "_")
        if key in without:
            return
        default = listed(defaults.get(key, default))
        said = "%(default)s" if default not in ("", None) else {**UNSET, **(unset or {})}.get(key)
        parser.add_argument(flag, default=default, help=f"{text} (default: {said})" if said else text, **settings)

    add("--output", Path("runs/tables"), f"gets {name}.md, .csv, .tex, .png and cells/", type=Path)
    add("--cells", None, "where finished cells are kept, for all tables", type=Path)
    add("--runs", Path("runs"), "folder of the trained runs", type=Path)
    add("--examples", 320, "problems a setting", type=int)
    add("--first", 0, "number of the first of them", type=int)
    add("--seeds", (0,), "of what draws or is trained, RUN_seed1", type=integers)
    add("--methods", (), "some of the table's rows, in this order", type=words)
    add("--readers", (READER,), "LLMs by name", type=words)
    add("--datasets", ("gsm8k",), "the problems", type=words)
    add("--shots", (16,), "candidate examples a prompt", type=integers)
    add("--keep-tokens", (256, 512), "budgets in tokens", type=integers)
    add("--keep-rates", (), "budgets as fractions of the context's tokens", type=numbers)
    add("--decode", 0, "tokens to decode for exact match; 0: answer NLL alone", type=int)
    add("--split", "test", "of the problems; tune on validation", choices=SPLITS)
    add("--max-answer", 384, "most tokens of a solution", type=int)
    add("--batch-size", 8, "prompts at a time", type=int)
    add("--dtype", "bfloat16", "of the reader", choices=("bfloat16", "float32"))
    add("--budget-minutes", None, "stop measuring after so long and draw what there is; 0: only draw", type=float)
    add("--bootstrap", 2000, "resamples behind the 95 %% intervals", type=int)
    return parser


def listed(value: Any) -> Any:
    """A default as it is typed, for its help: argparse reads a default that is text as it reads a flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(",") if word)


def words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


TITLES = {"gsm8k": "GSM8K", "svamp": "SVAMP", "addsub": "AddSub", "multiarith": "MultiArith", "singleeq": "SingleEq"}
POOL = {"pool": "gsm8k+mrd3", "pool_size": 1000, "max_words": 80, "validation_size": 500}
"""The pool of worked examples that candidates are drawn from; that of configs/rcp_math.py."""


def word_problems(options: argparse.Namespace, dataset: str, shots: int, reader: str) -> Setting:
    """Problems of a data set, each with candidates drawn from `POOL`."""
    return Setting(
        name=f"{dataset}_{shots}",
        title=f"{TITLES.get(dataset, dataset)}, {shots} candidates",
        task={"name": dataset, "shots": shots, **POOL},
        reader=reader,
        max_segments=shots,
        max_answer=options.max_answer,
        examples=options.examples,
        keep_tokens=options.keep_tokens,
        keep_rates=options.keep_rates,
        batch_size=options.batch_size,
        decode=options.decode,
        dtype=options.dtype,
        at=shots,
        split=options.split,
        first=options.first,
    )


def settings_of(options: argparse.Namespace) -> tuple[Setting, ...]:
    """Every reader, data set and number of candidates."""
    return tuple(
        word_problems(options, dataset, shots, reader)
        for reader in options.readers
        for dataset in options.datasets
        for shots in options.shots
    )


def trained(name: str) -> Method:
    """The row of a method of `RUNS`."""
    return Method(name, "ours", RUNS[name], f"configs/{RUNS[name]}.py", about=f"trained by configs/{RUNS[name]}.py")


def drawn(name: str) -> Method:
    """The same run, its mask drawn instead of filled up to the budget."""
    about = f"{name}, its mask drawn as published: it heeds no budget"
    return replace(trained(name), name=f"{name}_drawn", draw="sample", about=about)


def chosen(methods: Sequence[Method], names: Sequence[str]) -> tuple[Method, ...]:
    """The methods of these names, in that order; all where none is named.

    Raises:
      UserError: an unknown name.
    """
    known = {method.name: method for method in methods}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--methods: no row {unknown[0]!r}; expected some of {','.join(known)}")
    return tuple(known[name] for name in names) if names else tuple(methods)
