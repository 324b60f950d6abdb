"""configs/jsonl.py on a file of twelve rows, from `rcp train` to the report, with a published model in miniature."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from rcp.cli import main

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.lax
NAMES = ("Ann", "Bob", "Cy", "Di")


def tiny_model(folder: Path) -> Path:
    """A two-layer Llama with a token a character (its 96 symbols), in the format of the hub."""
    shutil.copytree(ROOT / "tests" / "references" / "llama3-tied", folder)
    symbols = ["<unk>", "<s>", "</s>", " ", "\n", *string.ascii_letters, *string.digits, *".:?'"]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def write_rows(path: Path) -> Path:
    rows = [
        {
            "question": f"Where is {name}?",
            "answer": f"City {i}",
            "context": f"{name} is in City {i}.\n\nIt is {i}.\n\nNo.",
        }
        for i, name in enumerate(NAMES * 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_from_a_file_of_rows_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rows, run = tiny_model(tmp_path / "model"), write_rows(tmp_path / "mine.jsonl"), tmp_path / "run"
    smaller = {
        "task.path": rows,
        "model.name": model,
        "model.dtype": "float32",
        "data.batch_size": 2,
        "data.lengths": "[96]",
        "data.max_segments": 3,
        "data.max_answer": 12,
        "policy.samples": 2,
        "policy.updates": 1,
        "scorer.width": 8,
        "scorer.depth": 1,
        "train.steps": 2,
        "parallel.devices": 1,
    }
    flags = [f"--config.{key}={value}" for key, value in smaller.items()]
    assert main(["train", f"--config={ROOT}/configs/jsonl.py", f"--workdir={run}", *flags]) == 0
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
