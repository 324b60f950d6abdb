"""An exported run is the run it came from, for all who use it; it cannot be trained further."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from rcp.config import Config, ParallelConfig
from rcp.config_saved import save_config
from rcp.train.export import FILE, META, read_export, write_export
from rcp.train.loop import export, restore, run
from rcp.types import UserError

from .toy import toy_config, toy_stages


def one_device(seed: int = 0) -> Config:
    return replace(toy_config(5), parallel=ParallelConfig(devices=1), seed=seed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    run(toy_stages(5, 5), one_device(), workdir)
    return workdir


@pytest.fixture
def exported(trained: Path, tmp_path: Path) -> Path:
    export(toy_stages(5, 5), one_device(), trained, tmp_path / "small")
    return tmp_path / "small"


def test_it_is_used_like_the_run(trained, exported):
    stages = toy_stages(5, 5)
    (state, frozen), (other, others_frozen) = (
        restore(stages, one_device(), trained),
        restore(stages, one_device(), exported),
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    jax.tree.map(np.testing.assert_array_equal, frozen, others_frozen)
    assert int(other.step) == int(state.step) == 5
    assert sorted(path.name for path in exported.iterdir()) == ["config.json", FILE]


def test_an_export_can_be_exported(exported, tmp_path):
    export(toy_stages(5, 5), one_device(), exported, tmp_path / "again")
    with np.load(exported / FILE) as first, np.load(tmp_path / "again" / FILE) as second:
        assert first.files == second.files
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])


def test_what_only_training_needs_stays_behind(trained, exported):
    with np.load(exported / FILE) as file:
        assert {name for name in file.files if name != META} == {"model.w", "pruner.w"}


def test_what_is_of_the_training_examples_stays_behind(trained, tmp_path):
    params = {"pruner": {"w": np.ones(5, np.float32)}, "states": {"features": np.ones((9, 2), np.float32)}}
    origin = {"fingerprint": "f", "weights": None}
    write_export(tmp_path / "out", trained / "config.json", params, **origin, step=3)
    found, step = read_export(tmp_path / "out", params, **origin)
    assert list(found) == ["pruner"] and step == 3
    np.testing.assert_array_equal(found["pruner"]["w"], params["pruner"]["w"])


def test_it_is_written_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="no space"):
        export(toy_stages(5, 5), one_device(), trained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_it_is_not_trained_further_and_nothing_is_overwritten(exported, trained):
    with pytest.raises(UserError, match="exported run, which cannot be trained further"):
        run(toy_stages(5, 5), one_device(), exported)
    with pytest.raises(UserError, match="is there already"):
        export(toy_stages(5, 5), one_device(), trained, exported)


def test_a_run_without_training_is_not_exported(tmp_path):
    save_config(one_device(), tmp_path / "new")
    with pytest.raises(UserError, match="holds no trained pruner yet"):
        export(toy_stages(5, 5), one_device(), tmp_path / "new", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_said(exported):
    with pytest.raises(UserError, match="was trained with another config"):
        restore(toy_stages(5, 5), one_device(seed=1), exported)
    other = [replace(stage, weights="elsewhere") for stage in toy_stages(5, 5)]
    with pytest.raises(UserError, match=r"other weights .* \(fingerprint None then, elsewhere now\)"):
        restore(other, one_device(), exported)


def test_a_file_cut_short_or_of_other_shapes_is_named(exported):
    path = exported / FILE
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        meta = file.read(META)
    np.savez(path, **{"model.w": np.zeros(5, np.float32), "pruner.w": np.zeros(3, np.float32)})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(META, meta)
    with pytest.raises(UserError, match=r"pruner\.w is float32\[3\] there and should be float32\[5\]"):
        restore(toy_stages(5, 5), one_device(), exported)
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"trained\.npz cannot be read .*: take a new copy"):
        restore(toy_stages(5, 5), one_device(), exported)
