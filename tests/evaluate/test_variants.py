"""The table of several runs, on rows made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.variants import main


def row(method: str, rate: float, value: float, metric: str = "em", **more: Any) -> dict[str, Any]:
    interval = {"ci_low": value - 0.05, "ci_high": value + 0.05}
    return {"method": method, "keep_rate_asked": rate, "metric": metric, "value": value, "n": 40, **interval, **more}


def write_run(folder: Path, ours: float, random: float = 0.25) -> Path:
    rows = [
        row("full", 1.0, 0.5),
        row("random", 0.5, random),
        row("random", 0.125, 0.0625),
        row("ours", 0.5, ours),
        row("ours", 0.125, 1.0),
        row("full", 1.0, 1.5, "nll"),
        row("random", 0.5, 2.25, "nll"),
        row("ours", 0.5, 0.75, "nll"),
    ]
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "report.json").write_text(json.dumps(rows))
    groups = [{"group": "all", **entry} for entry in rows] + [{"group": "two-hop", **row("ours", 0.5, 0.125)}]
    (folder / "eval" / "groups.json").write_text(json.dumps(groups))
    return folder


def test_one_row_a_method_and_one_of_ours_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both, rl = write_run(tmp_path / "both", 0.875), write_run(tmp_path / "rl", 0.75)
    assert main([str(both), f"{rl}=reinforcement alone", "--digits=2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "| exact match, n = 40 | keep .5 | keep .125 |",
        "|---|---|---|",
        "| full context | .50 [.45, .55] | .50 |",
        "| random | .25 [.20, .30] | .06 [.01, .11] |",
        "| **ours, both** | **.88 [.82, .93]** | **1.00 [.95, 1.05]** |",
        "| **ours, reinforcement alone** | **.75 [.70, .80]** | **1.00 [.95, 1.05]** |",
    ]


def test_a_pruner_without_a_budget_stands_in_every_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "drawn", 0.875)
    rows = json.loads((run / "eval" / "report.json").read_text())
    rows = [entry for entry in rows if entry["method"] != "ours"] + [row("ours", 0.5, 0.75) | {"keep_rate_asked": None}]
    (run / "eval" / "report.json").write_text(json.dumps(rows))
    assert main([str(run), "--digits=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| exact match, n = 40 | keep .5 | keep .125 |"
    assert lines[-1] == "| **ours, drawn** | **.75 [.70, .80]** | **.75** |"


def test_metric_group_and_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "both", 0.9)
    target = tmp_path / "table.md"
    assert main([str(run), "--metric=nll", f"--output={target}"]) == 0
    assert "| **ours, both** | **.750 [.700, .800]** |" in target.read_text()
    assert "| full context | 1.500 [1.450, 1.550] |" in target.read_text()
    assert main([str(run), "--group=two-hop", f"--output={target}"]) == 0
    assert target.read_text().splitlines()[0] == "| exact match, two-hop, n = 40 | keep .5 |"


def test_what_cannot_be_put_together_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_run(tmp_path / "one", 0.9), write_run(tmp_path / "other", 0.8, random=0.3)
    assert main([str(one), str(other)]) == 0
    assert "warning: random differ between the runs" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "report.json is missing: run rcp eval" in capsys.readouterr().err
    assert main([str(one), "--group=three-hop"]) == 2
    assert "no group 'three-hop'; expected one of all, two-hop" in capsys.readouterr().err
    assert main([str(one), str(one)]) == 2
    assert "two runs are called 'one'" in capsys.readouterr().err
