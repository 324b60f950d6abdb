"""The TFDS builders: written as array_record, read back equal, read by grain; TensorFlow stays out."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

import grain
import pytest

from rcp.data import sources
from rcp.data.sources import Problem
from rcp.data.tasks.chain import Chain
from rcp.data.tasks.facts import Facts
from rcp.data.tasks.jsonl import Jsonl
from rcp.data.tasks.reasoning_gym import ReasoningGym
from rcp.data.tasks.word_problems import Gsm8k
from rcp.types import UserError

from .raw_files import write_tiny

builders = pytest.importorskip("rcp.data.builders")


@pytest.mark.parametrize("name", ["gsm8k", "svamp", "addsub", "multiarith", "singleeq", "mrd3"])
def test_word_problems_round_trip(tmp_path, name):
    manual = write_tiny(tmp_path / "manual")
    builder = builders.prepare(name, data_dir=tmp_path / "tfds", manual_dir=manual)
    assert builder.info.file_format.value == "array_record"
    for split in sources.SOURCES[name].files:
        stored = builders.problems(name, split, data_dir=tmp_path / "tfds", manual_dir=manual)
        assert stored == sources.problems(name, split, manual)
    source = builder.as_data_source(split="test" if name != "mrd3" else "train")
    rows = list(grain.MapDataset.source(source).shuffle(seed=0))
    assert len(rows) == 40 and set(rows[0]) == {field.name for field in fields(Problem)}
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("task", [Facts(segments=8), Chain()])
def test_generated_tasks_round_trip(tmp_path, task):
    name = type(task).__name__.lower()
    counts = {"train": 12, "test": 5}
    builder = builders.prepare(name, task=task, counts=counts, data_dir=tmp_path)
    for split, count in counts.items():
        stored = builders.StoredExamples(builder.as_data_source(split=split))
        assert len(stored) == count and [*stored] == [*task.examples(split, count)] == stored[:]
    assert stored[-1] == stored[4]
    with pytest.raises(IndexError):
        stored[5]
    other = builders.prepare(name, task=type(task)(seed=9), counts=counts, data_dir=tmp_path)
    assert other.data_dir != builder.data_dir


def test_jsonl_round_trip(tmp_path):
    """With forced spans and without support; another content of the file is another data set."""
    path = tmp_path / "mine.jsonl"
    row = {"question": "Who?", "answer": "Anna", "context": ["Anna is here.", "Tom is 7."], "forced": ["7"]}
    path.write_text("\n".join(json.dumps({**row, "group": f"g{i % 2}"}) for i in range(10)))
    task = Jsonl(path=str(path))
    builder = builders.prepare("jsonl", task=task, data_dir=tmp_path / "tfds")
    for split in ("train", "validation", "test"):
        assert [*builders.StoredExamples(builder.as_data_source(split=split))] == [*task.examples(split)]
    assert task.examples("train")[0].forced and task.examples("train")[0].support is None
    path.write_text(path.read_text().replace("Tom", "Tim"))
    changed = builders.prepare("jsonl", task=Jsonl(path=str(path)), data_dir=tmp_path / "tfds")
    assert changed.data_dir != builder.data_dir


def test_reasoning_gym_round_trip(tmp_path):
    pytest.importorskip("reasoning_gym")
    task = ReasoningGym(shots=2)
    builder = builders.prepare("reasoning_gym", task=task, counts={"test": 4}, data_dir=tmp_path)
    assert [*builders.StoredExamples(builder.as_data_source(split="test"))] == [*task.examples("test", 4)]


def test_task_reads_the_prepared_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_DATA_DIR", str(write_tiny(tmp_path / "raw")))
    monkeypatch.setattr(builders.tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    small = {"pool_size": 15, "validation_size": 5, "shots": 4}
    prepared, direct = Gsm8k(source="tfds", **small), Gsm8k(**small)
    for split in ("train", "validation", "test"):
        assert [*prepared.examples(split, 4)] == [*direct.examples(split, 4)]


def test_unknown_name_or_missing_files(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"no TFDS builder 'aqua'"):
        builders.prepare("aqua", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"gsm8k_train.jsonl"):
        builders.prepare("gsm8k", data_dir=tmp_path)
