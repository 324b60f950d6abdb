"""metrics.jsonl through crashes, and what the console shows."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from rcp.train.metrics import Bar, MetricsLog, Report
from rcp.types import UserError

from .toy import toy_config


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def write(path, steps, after=0):
    log = MetricsLog(path, upto={"pruner": after})
    for step in steps:
        log.write(step, "pruner", {"loss": step / 2})
    log.flush()
    return log


@pytest.mark.parametrize("tail", ["", '{"step": 9, "lo', '{"step": 9}', "\n\n", "\x00\x00\x00"])
def test_after_a_resume_no_step_stands_twice_and_none_is_missing(tmp_path, tail):
    """The run died after step 8 and while it wrote more; its last checkpoint is of step 5."""
    write(tmp_path, range(1, 9)).close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    write(tmp_path, range(6, 12), after=5).close()
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 12))
    assert rows(tmp_path)[6]["loss"] == 3.5


def test_rows_of_a_stage_behind_the_one_that_is_redone_stay(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 9):
        log.write(step, "reader" if step <= 4 else "pruner", {"loss": 1.0})
    log.close()
    MetricsLog(tmp_path, upto={"reader": 2, "pruner": 7}).close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 5, 6, 7]


def test_rows_are_on_file_at_once_and_not_finite_numbers_are_null(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, "pruner", {"loss": math.nan, "nll": 2.0})
    assert rows(tmp_path) == [{"step": 1, "stage": "pruner", "loss": None, "nll": 2.0}]
    log.close()


def test_tensorboard_files_are_written(tmp_path):
    write(tmp_path, range(3)).close()
    files = list((tmp_path / "tensorboard").iterdir())
    assert files
    assert b"pruner/loss" in files[0].read_bytes()


def make_report(tmp_path, fetched, **config):
    log = MetricsLog(tmp_path)
    bar = Bar("pruner", 10, 0, Console(file=io.StringIO()))

    def fetch(metrics):
        fetched.append(metrics)
        return metrics

    return Report("pruner", 10, 100, toy_config(**config), log, bar, fetch)


def test_metrics_are_fetched_one_step_late(tmp_path):
    fetched = []
    report = make_report(tmp_path, fetched)
    report.add(1, {"loss": 1.0}, 5)
    assert fetched == []
    report.add(2, {"loss": 2.0}, 5)
    assert fetched == [{"loss": 1.0}]
    report.drain()
    report.drain()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(101, 1.0), (102, 2.0)]


def test_log_every_and_the_last_step(tmp_path):
    report = make_report(tmp_path, [], log_every=4)
    for step in range(1, 11):
        report.add(step, {"loss": 0.0}, 1)
    report.drain()
    assert [row["step"] for row in rows(tmp_path)] == [104, 108, 110]


def test_too_many_steps_that_are_not_finite_name_step_and_term(tmp_path):
    report = make_report(tmp_path, [], max_nonfinite=3)
    for step in range(4, 6):
        report.add(step, {"loss": math.nan, "nll": math.nan, "kl": 1.0, "nonfinite_run": float(step - 3)}, 1)
    report.add(6, {"loss": math.nan, "nll": math.nan, "kl": 1.0, "nonfinite_run": 3.0}, 1)
    with pytest.raises(UserError, match=r"stage pruner, step 6: nll not finite since step 4 \(3 steps in a row"):
        report.drain()


def test_without_a_terminal_lines_come_seldom(monkeypatch):
    out = io.StringIO()
    with Bar("pruner", 100, 0, Console(file=out)) as bar:
        for step in range(1, 101):
            bar.update(step, {"loss": 0.25}, 12345.0)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[-1] == "pruner 100/100  loss 0.2500  12.3k tokens/s  0:00 left"


def test_on_a_terminal_a_bar_shows_progress():
    out = io.StringIO()
    with Bar("pruner", 4, 0, Console(file=out, force_terminal=True, width=120)) as bar:
        bar.update(3, {"loss": 0.25, "nonfinite_run": 2.0}, 800.0)
    text = out.getvalue()
    assert "3/4" in text
    assert "loss 0.2500  800 tokens/s  skipped 2 in a row" in text
