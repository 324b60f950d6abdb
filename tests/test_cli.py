"""The command line: flags, exit statuses, messages without tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rcp import cli, doctor
from rcp.types import UserError

ROOT = Path(__file__).parents[1]


def test_config_flags_are_told_from_arguments():
    rest, overrides = cli.split_overrides(
        ["train", "--config=a.py", "--config.x.y=1", "--config.z", "2", "--workdir", "d"]
    )
    assert rest == ["train", "--config=a.py", "--workdir", "d"]
    assert overrides == ["--config.x.y=1", "--config.z=2"]


def test_a_user_error_is_one_message_and_status_2(tmp_path, capsys):
    (tmp_path / "x.py").write_text("def get_config(): return {}")
    assert cli.main(["train", f"--config={tmp_path}/x.py", f"--workdir={tmp_path}/w", "--config.sed=1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rcp train: unknown config key config.sed in the flag --config.sed; did you mean")
    assert "Traceback" not in captured.err
    assert not (tmp_path / "w").exists()


def test_without_config_or_run_train_says_what_to_give(tmp_path, capsys):
    assert cli.main(["train", f"--workdir={tmp_path}"]) == 2
    assert "give --config=configs/X.py" in capsys.readouterr().err


@pytest.mark.parametrize("config", [["--config=configs/smoke.py"], []])
def test_a_workdir_that_can_hold_no_run_is_named_before_anything_is_built(config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").touch()
    for name in ("file", "file/run"):
        assert cli.main(["train", *config, f"--workdir={tmp_path}/{name}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"rcp train: --workdir={tmp_path}/{name}: {tmp_path}/file is a file; expected a folder")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # who runs this may write everywhere
    assert cli.main(["train", *config, f"--workdir={tmp_path}/a/b"]) == 2
    assert f"--workdir={tmp_path}/a/b: the folder {tmp_path} cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("argv", [["trian"], ["train"], ["doctor", "--config.seed=1"], ["train", "--workdri=x"]])
def test_wrong_arguments_exit_with_2(argv):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2


def test_help_is_quick_to_import():
    """The heavy libraries are imported by the command that needs them."""
    code = "import sys, rcp.cli; assert not {'jax', 'numpy', 'orbax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_doctor_reports_what_is_there_and_what_is_not(monkeypatch, tmp_path):
    (tmp_path / "svamp.json").write_text("[]")
    monkeypatch.setenv("RCP_DATA_DIR", str(tmp_path))
    text = doctor.report()
    for word in ("python", "jax ", "orbax-checkpoint", "cpu 7", "smollm2-135m-instruct", str(tmp_path / "svamp.json")):
        assert word in text
    assert "gsm8k_train.jsonl" in text
    assert "curl -L" in text


def test_the_doctor_survives_what_is_broken(monkeypatch):
    def broken():
        raise UserError("no such luck")

    monkeypatch.setattr(doctor, "_weights", broken)
    assert "failed" in doctor.report()
    assert "no such luck" in doctor.report()
