"""TFDS builders, stored as array_record and read without TensorFlow.

    builder = builders.prepare("gsm8k")                       # raw files: see rcp.data.sources
    source = builder.as_data_source(split="train")            # random access; grain.MapDataset.source(source)

`gsm8k`, `svamp`, `addsub`, `multiarith`, `singleeq` and `mrd3` hold the published rows; `facts`, `chain`,
`reasoning_gym` and `jsonl` hold examples of those tasks, generated or read once. TFDS is imported with this module, so
import it only where it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import tensorflow_datasets as tfds

from rcp.data import sources
from rcp.data.sources import Problem
from rcp.data.tasks.base import SPLITS, Split, Task
from rcp.types import Example, UserError

_VERSION = tfds.core.Version("1.0.0")
_TEXT = tfds.features.Text
_EXAMPLE_TEXTS = ("instruction", "question", "answer", "group", "uid")
_EXAMPLE_TASKS = ("facts", "chain", "reasoning_gym", "jsonl")


class _ProblemBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Rows of a published set of word problems, from its raw files in the manual folder."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {"1.1.0": "The equations of GSM8K's solutions.", "1.0.0": "First version."}
    SOURCE = ""

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {key: _TEXT() for key in ("question", "solution", "answer", "uid", "equations")}
        features |= {key: tfds.features.Scalar(np.int32) for key in ("difficulty", "steps")}
        return tfds.core.DatasetInfo(
            builder=self, description=type(self).__doc__, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        manual = Path(dl_manager.manual_dir)
        return {split: self._generate_examples(manual, split) for split in sources.SOURCES[self.SOURCE].files}

    def _generate_examples(self, manual: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, row in enumerate(sources.problems(self.SOURCE, split, manual)):
            yield number, {field.name: getattr(row, field.name) for field in fields(Problem)}


class RcpGsm8k(_ProblemBuilder, skip_registration=True):
    """GSM8K with the calculator marks taken out."""

    SOURCE = "gsm8k"
    MANUAL_DOWNLOAD_INSTRUCTIONS = sources.SOURCES["gsm8k"].get


class RcpSvamp(_ProblemBuilder, skip_registration=True):
    """SVAMP, all rows as test."""

    SOURCE = "svamp"
    MANUAL_DOWNLOAD_INSTRUCTIONS = sources.SOURCES["svamp"].get


class RcpAddsub(_ProblemBuilder, skip_registration=True):
    """AddSub, all rows as test."""

    SOURCE = "addsub"
    MANUAL_DOWNLOAD_INSTRUCTIONS = sources.SOURCES["addsub"].get


class RcpMultiarith(_ProblemBuilder, skip_registration=True):
    """MultiArith, all rows as test."""

    SOURCE = "multiarith"
    MANUAL_DOWNLOAD_INSTRUCTIONS = sources.SOURCES["multiarith"].get


class RcpSingleeq(_ProblemBuilder, skip_registration=True):
    """SingleEq, all rows as test."""

    SOURCE = "singleeq"
    MANUAL_DOWNLOAD_INSTRUCTIONS = sources.SOURCES["singleeq"].get


class RcpMrd3(_ProblemBuilder, skip_registration=True):
    """MRD3, variant revise_difficulty."""

    SOURCE = "mrd3"
    MANUAL_DOWNLOAD_INSTRUCTIONS = sources.SOURCES["mrd3"].get


@dataclass(kw_only=True)
class ExamplesConfig(tfds.core.BuilderConfig):
    """The task whose examples a builder stores, and how many of each split."""

    task: Any = None
    counts: tuple[tuple[str, int], ...] = ()


class RcpExamples(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Examples of a task, one config for each choice of its fields."""

    VERSION = _VERSION
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {key: _TEXT() for key in _EXAMPLE_TEXTS}
        features["context"] = tfds.features.Sequence(_TEXT())
        for key in ("support", "forced"):  # forced: segment, start and end of each span in turn
            features[key] = tfds.features.Sequence(tfds.features.Scalar(np.int32))
        features |= {key: tfds.features.Scalar(np.int32) for key in ("number", "support_known")}
        return tfds.core.DatasetInfo(
            builder=self, description=type(self).__doc__, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        del dl_manager
        config = self.builder_config
        assert isinstance(config, ExamplesConfig)
        return {split: self._generate_examples(split, count) for split, count in config.counts}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        task = self.builder_config.task  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        for number, example in enumerate(task.examples(split, count)):
            row: dict[str, Any] = {key: getattr(example, key) for key in (*_EXAMPLE_TEXTS, "context")}
            row |= {"number": number, "support": example.support or (), "support_known": example.support is not None}
            yield number, row | {"forced": [place for span in example.forced for place in span]}


_PROBLEMS: dict[str, type[_ProblemBuilder]] = {
    "gsm8k": RcpGsm8k,
    "svamp": RcpSvamp,
    "addsub": RcpAddsub,
    "multiarith": RcpMultiarith,
    "singleeq": RcpSingleeq,
    "mrd3": RcpMrd3,
}


def prepare(
    name: str,
    *,
    task: Task | None = None,
    counts: dict[Split, int] | None = None,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
) -> tfds.core.DatasetBuilder:
    """A builder whose data are on disk, generated at the first call.

    Args:
      name: gsm8k, svamp, addsub, multiarith, singleeq, mrd3, facts, chain, reasoning_gym or jsonl.
      task: the task whose examples the last four store (default: with its default fields; jsonl has to have a path).
      counts: how many examples of each split those store at most (default: 1,000 of each).
      data_dir: where prepared data are kept (default: that of TFDS, ~/tensorflow_datasets or $TFDS_DATA_DIR).
      manual_dir: where the raw files are (default: as `rcp.data.sources.find_file` looks).

    Raises UserError on an unknown name or missing raw files.
    """
    options: dict[str, Any] = {"data_dir": data_dir, "file_format": "array_record"}
    download: dict[str, Any] = {}
    if name in _PROBLEMS:
        if manual_dir is None:
            manual_dir = sources.find_file(next(iter(sources.SOURCES[name].files.values())), name).parent
        builder = _PROBLEMS[name](**options)
        download["manual_dir"] = manual_dir
    elif name in _EXAMPLE_TASKS:
        from rcp.data.tasks import TASKS

        task = task or TASKS[name]()
        sizes = tuple((split, (counts or dict.fromkeys(SPLITS, 1_000)).get(split, 0)) for split in SPLITS)
        sizes = tuple((split, size) for split, size in sizes if size)
        config = ExamplesConfig(name=f"{name}_{_label(task, sizes)}", description=repr(task), task=task, counts=sizes)
        builder = RcpExamples(config=config, **options)
    else:
        raise UserError(f"no TFDS builder {name!r}: expected one of {', '.join([*_PROBLEMS, *_EXAMPLE_TASKS])}")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**download))
    return builder


def _label(task: Task, sizes: tuple[tuple[str, int], ...]) -> str:
    """Twelve digits that change with the task's fields, the counts and the content of the task's files."""
    digest = hashlib.sha256(repr((task, sizes)).encode())
    for key in ("path", "validation_path", "test_path"):
        if getattr(task, key, ""):
            path = Path(getattr(task, key)).expanduser()
            digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:12]


def problems(name: str, split: str, **options: Any) -> list[Problem]:
    """The rows of a prepared set of word problems, equal to `rcp.data.sources.problems`, in the same order."""
    if split not in sources.SOURCES[name].files:
        raise UserError(f"data set {name!r} has no published split {split!r}")
    rows = prepare(name, **options).as_data_source(split=split)  # pyright: ignore[reportCallIssue]
    found = [Problem(**{key: _plain(value) for key, value in row.items()}) for row in rows]  # pyright: ignore
    return sorted(found, key=lambda row: int(row.uid.replace("entry ", "").rpartition(":")[2]))


class StoredExamples(Sequence[Example]):
    """Random access to the examples in a data source of an `RcpExamples` builder."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def _place(self) -> dict[int, int]:
        """Where each example is stored: TFDS writes them in an order of its own."""
        return {int(row["number"]): place for place, row in enumerate(self.source)}

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = self.source[self._place[int(index) % len(self)]]
        texts = {key: _plain(row[key]) for key in _EXAMPLE_TEXTS}
        forced = [int(place) for place in row["forced"]]
        return Example(
            context=tuple(_plain(segment) for segment in row["context"]),
            support=tuple(int(s) for s in row["support"]) if row["support_known"] else None,
            forced=tuple(zip(forced[::3], forced[1::3], forced[2::3])),
            **texts,
        )


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else int(value)
