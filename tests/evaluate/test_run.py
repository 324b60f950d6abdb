"""`rcp train`, `rcp eval` and `rcp prune` on a run that is only there to be run."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rcp.cli import main
from rcp.config import DEFAULT_METHODS, METHODS
from rcp.config_file import from_dict, load_config
from rcp.config_saved import save_config
from rcp.evaluate.run import FILES
from rcp.evaluate.tables import read_results
from rcp.infer.trained import check_groups
from rcp.types import UserError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.lax
TINY = """
import runpy

def get_config(variant=""):
    config = runpy.run_path("{smoke}")["get_config"]().to_dict()
    config["objectives"] = {{"bce": 1.0}}
    config["reader"]["steps"] = config["train"]["steps"] = 2
    config["parallel"] = {{"devices": 1}}
    return config
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.py").write_text(TINY.format(smoke=ROOT / "configs" / "smoke.py"))
    assert main(["train", f"--config={folder / 'tiny.py'}", f"--workdir={folder}"]) == 0
    assert main(["eval", f"--workdir={folder}", "--config.eval.examples=12", "--config.eval.batch_size=8"]) == 0
    return folder


def test_another_run_is_compared_under_its_name(workdir: Path, tmp_path: Path, capsys) -> None:
    """LLMLingua-2's classifier, trained on labels of tokens, beside the run whose reader it shares."""
    other = tmp_path / "llmlingua2"
    flags = [
        "--config.scorer.kind=llmlingua2",
        "--config.scorer.layer=1",
        "--config.budget.granularity=token",
        "--config.labels.source=tokens",
    ]
    assert main(["train", f"--config={workdir / 'tiny.py'}", f"--workdir={other}", *flags]) == 0
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    small = ["--config.eval.methods=['random','ours']", "--config.eval.examples=4", "--config.eval.batch_size=4"]
    assert main(["eval", f"--workdir={copy}", f"--config.eval.runs.llmlingua2={other}", *small]) == 0
    results = read_results(copy / "eval" / "results.npz")
    assert [name for name, _ in results.settings] == ["random", "random", "ours", "ours", "llmlingua2", "llmlingua2"]
    for (_, rate), kept in zip(results.settings, results.kept):
        np.testing.assert_array_equal(kept, np.maximum(1, np.floor(rate * results.context + 1e-4)))
    assert any(row["method"] == "llmlingua2" for row in json.loads((copy / "eval" / "paired.json").read_text()))
    capsys.readouterr()
    assert main(["eval", f"--workdir={copy}", f"--config.eval.runs.random={other}", *small]) == 2
    assert "random is a method's name" in capsys.readouterr().err
    assert main(["eval", f"--workdir={copy}", f"--config.eval.runs.x={tmp_path / 'none'}", *small]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_eval_writes_every_file(workdir: Path) -> None:
    assert {path.name for path in (workdir / "eval").iterdir()} == {*FILES, "cells"}


def test_report_compares_all_methods_at_all_rates(workdir: Path) -> None:
    rows = json.loads((workdir / "eval" / "report.json").read_text())
    methods = ["full", "none", "shorter", "random", "first", "last", "perplexity", "bm25", "oracle", "ours"]
    assert list(dict.fromkeys(row["method"] for row in rows)) == methods
    assert {row["metric"] for row in rows} == {"em", "nll"}
    assert len(rows) == len({(row["method"], row["keep_rate_asked"], row["metric"]) for row in rows})
    for row in rows:
        assert row["n"] == 12 and row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["keep_rate_asked"] in {"full": (1.0,), "none": (0.0,)}.get(row["method"], (0.5, 0.25))
        assert row["prune_seconds"] > 0 and row["model_seconds"] > 0


def test_methods_spend_the_same(workdir: Path) -> None:
    results = read_results(workdir / "eval" / "results.npz")
    for (method, rate), kept in zip(results.settings, results.kept):
        if method not in ("full", "none", "shorter"):
            np.testing.assert_array_equal(kept, np.maximum(1, np.floor(rate * results.context + 1e-4)))


def test_the_methods_that_are_not_default_spend_the_same(workdir: Path, tmp_path: Path) -> None:
    methods = [method for method in METHODS if method not in DEFAULT_METHODS]
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    flags = ["--config.eval.examples=6", "--config.eval.batch_size=4", f"--config.eval.methods={methods}"]
    assert main(["eval", f"--workdir={copy}", *flags]) == 0
    results = read_results(copy / "eval" / "results.npz")
    assert list(dict.fromkeys(method for method, _ in results.settings)) == methods
    for (_, rate), kept in zip(results.settings, results.kept):
        np.testing.assert_array_equal(kept, np.maximum(1, np.floor(rate * results.context + 1e-4)))


def test_a_second_eval_computes_what_is_missing_or_stale(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    before = read_results(copy / "eval" / "results.npz")

    def again(*flags: str) -> str:
        flags = ("--config.eval.examples=12", "--config.eval.batch_size=8", *flags)
        assert main(["eval", f"--workdir={copy}", *flags]) == 0
        return capsys.readouterr().out

    out = again()
    assert out.count("2 of 2 batches are in") == len(DEFAULT_METHODS)
    assert "compiled not at all: every number was there" in out
    after = read_results(copy / "eval" / "results.npz")
    for name in ("nll", "em", "kept", "prune_seconds", "model_seconds"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    (copy / "eval" / "cells" / "bm25.npz").unlink()
    out = again()
    assert "bm25: 2 of 2" not in out and "first: 2 of 2 batches are in" in out and "compiled once" in out
    assert main(["train", f"--workdir={copy}", "--config.train.steps=3"]) == 0
    out = again("--config.eval.methods=['random', 'ours']")
    assert "random: 2 of 2" in out and "ours.npz is stale: pruner was" in out and "ours: 2 of 2" not in out


def test_prune_prints_the_text_and_the_counts(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = [f" v{i} = {i} ;" for i in range(4)]
    (tmp_path / "a.txt").write_text("\n\n".join(context))
    arguments = ["prune", f"--workdir={workdir}", str(tmp_path / "a.txt"), "--question", " v1 ?"]
    assert main([*arguments, "--keep-rate=0.5"]) == 0
    out, err = capsys.readouterr()
    assert len(out.split()) == 8
    assert "kept 8 of 16 context tokens (asked for 8), from 2 of 4 segments" in err
    assert main([*arguments, "--keep-tokens=100", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["text"].split() == "".join(context).split() and found["kept"] == 16
    assert "above the context's 16: it is kept whole" in err


def test_prune_keeps_the_line_ends_of_files_and_of_stdin(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " v1 = 3 ;\r\n\r\n v2 = 4 ;\r\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    arguments = [f"--workdir={workdir}", "--question= v1 ?", "--keep-rate=1"]
    assert main(["prune", str(tmp_path / "a.txt"), "-", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == text * 2 and err.count("from 2 of 2 segments") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert main(["prune", "-", *arguments]) == 2
    assert "-: cannot be read as text" in capsys.readouterr().err


def test_an_exported_run_prunes_as_the_run_does(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f" v{i} = {i} ;" for i in range(4)))
    assert main(["export", f"--workdir={workdir}", f"--output={tmp_path / 'small'}"]) == 0
    assert f"exported: {tmp_path / 'small'}, " in capsys.readouterr().out
    printed = []
    for folder in (workdir, tmp_path / "small"):
        arguments = ["prune", f"--workdir={folder}", str(tmp_path / "a.txt"), "--question", " v1 ?", "--keep-rate=0.5"]
        assert main([*arguments, "--json"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert main(["train", f"--workdir={tmp_path / 'small'}"]) == 2
    assert "cannot be trained further" in capsys.readouterr().err


def test_an_interrupted_run_says_so(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = tmp_path / "half"
    shutil.copytree(workdir, half)
    config = json.loads((half / "config.json").read_text())
    config["train"]["steps"] = 4
    (half / "config.json").write_text(json.dumps(config))
    (tmp_path / "a.txt").write_text(" v1 = 3 ;")
    arguments = [str(tmp_path / "a.txt"), "--question= v1 ?", "--keep-rate=1"]
    assert main(["prune", f"--workdir={workdir}", *arguments]) == 0
    assert "stopped" not in capsys.readouterr().err
    status = main(["prune", f"--workdir={half}", *arguments])
    err = capsys.readouterr().err
    assert (status, err.count("stopped at step 2 of 4")) == (0, 1), err
    assert main(["export", f"--workdir={half}", f"--output={tmp_path / 'small'}"]) == 0
    assert "stopped at step 2 of 4" in capsys.readouterr().err
    assert main(["prune", f"--workdir={tmp_path / 'small'}", *arguments]) == 0
    err = capsys.readouterr().err
    assert "stopped at step 2 of 4" in err and "rcp train" not in err


def test_groups_that_the_scorer_has_no_weights_for_are_refused(tmp_path: Path, capsys) -> None:
    """Looked up, the last ones' would be taken."""
    values = {"task": {"name": "facts", "hops": [1, 2]}, "scorer": {"kind": "linear", "groups": 2}}
    values["objectives"] = {"bce": 1.0}
    save_config(from_dict(values), tmp_path / "run")
    rows = [{"question": "q", "answer": "a", "context": "c", "group": name} for name in ("a", "b", "c")]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--config.task.name=jsonl", f"--config.task.test_path={tmp_path / 'own.jsonl'}"]
    assert main(["eval", f"--workdir={tmp_path / 'run'}", *more]) == 2
    said = capsys.readouterr().err
    assert "config.task.name = 'jsonl' brings the groups 'a', 'b', 'c': expected at most 2, in the order 'one" in said
    trained = load_config(tmp_path / "run" / "config.json")
    for fine in (("one-hop", "two-hop"), ("one-hop",), ("a", "two-hop"), ("a", "b"), ("",)):
        check_groups(trained, fine, "run", "task")
    with pytest.raises(
        UserError, match=r"eval.runs.x brings the groups 'two-hop': expected .*config.scorer.groups = 2"
    ):
        check_groups(trained, ("two-hop",), "run", "config.eval.runs.x")
    check_groups(replace(trained, scorer=replace(trained.scorer, groups=1)), ("a", "b", "c"), "run", "task")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "{run}", "{tmp}/empty.txt", "--question= v1 ?", "--keep-rate=0.5"], "empty.txt: empty context"),
        (["prune", "{run}", "{tmp}/absent.txt", "--question= v1 ?", "--keep-rate=0.5"], "absent.txt: cannot be read"),
        (["prune", "{run}", "{tmp}/empty.txt", "--question= v1 ?", "--keep-rate=1.5"], "expected a fraction in (0, 1]"),
        (["prune", "--workdir={tmp}/no", "{tmp}/a.txt", "--question= v1 ?", "--keep-rate=1"], "holds no run"),
        (["eval", "--workdir={tmp}/no"], "holds no run"),
        (["export", "--workdir={tmp}/no", "--output={tmp}/out"], "holds no run"),
        (["export", "{run}", "--output={tmp}"], "is there already"),
        (["eval", "{run}", "--config.eval.keep_rates=[0.5,0]"], "(0, 1]"),
        (["eval", "{run}", "--config.eval.methods=['orcale']"], "orcale"),
        (["eval", "{run}", "--config.scorer.depth=1"], "config.scorer.depth was decided in training"),
    ],
)
def test_bad_input_is_named(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "a.txt").write_text(" v1 = 3 ;")
    places = {"run": f"--workdir={workdir}", "tmp": tmp_path}
    assert main([argument.format(**places) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
