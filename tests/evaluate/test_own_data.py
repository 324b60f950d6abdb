"""configs/jsonl.py on a file of twelve rows, from `rcp train` to the report, with a published model in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rcp.cli import main
from tests.evaluate.own_data import smaller, tiny_model, write_rows

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.lax


def test_from_a_file_of_rows_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rows, run = tiny_model(tmp_path / "model"), write_rows(tmp_path / "mine.jsonl"), tmp_path / "run"
    assert main(["train", f"--config={ROOT}/configs/jsonl.py", f"--workdir={run}", *smaller(model, rows)]) == 0
    methods = "--config.eval.methods=['full', 'bm25', 'oracle', 'ours']"
    assert main(["eval", f"--workdir={run}", "--config.eval.keep_rates=[0.5]", methods]) == 0
    report = json.loads((run / "eval" / "report.json").read_text())
    assert {row["method"] for row in report} == {"full", "bm25", "ours"}
    assert {row["n"] for row in report} == {1}, "a tenth of twelve rows is the test"
    assert "oracle: left out" in capsys.readouterr().out
    (tmp_path / "note.txt").write_text("Ann is in City 0.\n\nIt is 0.\n\nNo.\n")
    arguments = [f"--workdir={run}", str(tmp_path / "note.txt"), "--question=Where is Ann?", "--keep-tokens=12"]
    assert main(["prune", *arguments]) == 0
    assert "(asked for 12)" in capsys.readouterr().err


def test_without_a_path_it_says_which_key_to_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"--config={ROOT}/configs/jsonl.py", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "config.task.path is empty" in capsys.readouterr().err
