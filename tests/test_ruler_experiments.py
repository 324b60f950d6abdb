"""RULER-style tasks from the config to the survey and the table, on a model in miniature."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from experiments import ruler, ruler_reader
from experiments.ruler_reader import masks_of, table
from rcp.cli import main as rcp
from rcp.config_file import load_config
from rcp.data.pack import collate, encode
from rcp.data.tasks.base import Split
from rcp.data.tasks.needle import Needle
from rcp.train.build import make_task
from rcp.types import Role
from tests.data.long_prompts import Chunks
from tests.evaluate.own_data import tiny_model

pytestmark = pytest.mark.lax
FILE = ruler.FILE
VARIANTS = runpy.run_path(str(FILE))["VARIANTS"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in miniature, for prompts of more than its 256 characters."""
    folder = tiny_model(tmp_path_factory.mktemp("world") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_task_whose_prompts_fit_its_data(variant: str, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(" ".join(f"This is what stands in sentence {i} of the book." for i in range(6000)))
    config = load_config(f"{FILE}:{variant}")
    if config.task.name == "long_text":
        config = load_config(f"{FILE}:{variant}", [f"--config.task.path={book}"])
    task, tokens = make_task(config), config.data.lengths[-1]
    assert variant.partition("_")[2] in ("", str(tokens))
    for example in task.examples("train", 3):
        encoded = encode(example, Chunks())
        assert len(example.context) <= config.data.max_segments
        assert len(encoded.answer) <= config.data.max_answer or config.task.name == "long_text"
    task_at = ruler.config_of(variant.partition("_")[0], 777, str(book))
    assert task_at.data.lengths == (777,) and task_at.task.fields["tokens"] == 777
    assert task_at.data.max_segments == pytest.approx(config.data.max_segments * 777 / tokens, abs=2)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_text_is_measured_from_beginning_to_end(split: Split, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(" ".join(f"This is what stands in sentence {i} of the book." for i in range(600)))
    windows = make_task(ruler.config_of("text", 512, str(book))).examples_in(Chunks(), split)
    read = "".join("".join(window.context) + window.question + window.answer for window in windows)
    assert len(windows) > 5 and "sentence 0 of" in read and len(read) > 0.9 * len(book.read_text())


def test_masks_leave_what_is_needed() -> None:
    tokenizer = Chunks()
    examples = [encode(example, tokenizer) for example in Needle(tokens=300, keys=2).examples_in(tokenizer, "train", 2)]
    batch = collate(examples, 300, 80, 3)
    masks = masks_of(batch)
    assert masks["full"].all() and not masks["none"][batch.role == Role.CONTEXT].any()
    for row in range(2):
        kept = masks["needed"][row] & (batch.role[row] == Role.CONTEXT)
        needed = np.concatenate([examples[row].context[s] for s in np.flatnonzero(examples[row].support == 1)])
        np.testing.assert_array_equal(batch.tokens[row][kept], needed)
        assert masks["needed"][row][batch.role[row] != Role.CONTEXT].all()
    unknown = batch._replace(support=np.where(batch.support == 1, -1, batch.support))
    assert set(masks_of(unknown)) == {"full", "none"}


def test_the_survey_goes_on_where_it_was_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ruler_reader, "SHORT", (256,))
    book = tmp_path / "book.txt"
    book.write_text(" ".join(f"This is sentence {i} of it." for i in range(800)))
    flags = [
        f"--model={model}",
        "--dtype=float32",
        f"--output={tmp_path}",
        "--questions=3",
        "--tokens=512",
        f"--text={book}",
    ]
    flags += ["--batch-size=2", '--set={"single": {"digits": 3}}']
    assert ruler_reader.main(["--datasets=single", "--seeds=1", *flags]) == 0
    cells = (tmp_path / "cells.jsonl").read_text().splitlines()
    assert len(cells) == 1 and json.loads(cells[0])["identity"]["task"]["digits"] == 3
    assert ruler_reader.main(["--datasets=single,text", "--seeds=1,2", *flags]) == 0
    kept = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert [(cell["name"], cell["seed"]) for cell in kept] == [("single", 1), ("single", 2), ("text", 1), ("text", 2)]
    assert json.dumps(kept[0]) == cells[0] and set(kept[2]["nll"]) == {"full", "none"}
    assert all(cell["n"] == 3 and 400 < cell["prompt"] <= 512 for cell in kept)
    lines = (tmp_path / "ruler_reader.md").read_text().splitlines()
    assert lines[2].startswith("| single | 512 | ") and " | 6 | 0.00 (0.00 to 0.00) | " in lines[2]
    assert lines[3].split(" | ")[5] == "-", "nobody says what a text needs"
    assert ruler_reader.main(["--datasets=single,passkey", "--seeds=1", "--budget-minutes=0", *flags]) == 0
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 4
    assert "passkey" not in (tmp_path / "ruler_reader.md").read_text()
    assert ruler_reader.main(["--datasets=singles", *flags]) == 2
    assert "unknown variant 'singles'" in capsys.readouterr().err
    whole = (tmp_path / "cells.jsonl").read_text()
    (tmp_path / "cells.jsonl").write_text(whole + '{"identity": {"ta')  # stopped while it wrote
    assert ruler_reader.main(["--datasets=single", "--seeds=1", *flags]) == 0
    assert "its last line is not whole" in capsys.readouterr().err
    assert (tmp_path / "cells.jsonl").read_text() == whole
    (tmp_path / "cells.jsonl").write_text('{"identity": {"ta\n' + whole)
    assert ruler_reader.main(["--datasets=single", "--seeds=1", *flags]) == 2
    assert "cells.jsonl, line 1: not JSON" in capsys.readouterr().err


def test_the_survey_means_over_seeds() -> None:
    def cell(seed: int, full: float) -> dict:
        exact, nll = {"full": full, "none": 0.0, "needed": 1.0}, {"full": 2.0, "none": 3.0, "needed": 0.5}
        return {"name": "a", "tokens": 512, "seed": seed, "n": 4, "prompt": 500.0, "exact": exact, "nll": nll}

    assert table([cell(1, 0.25), cell(2, 0.75)]).splitlines()[2] == (
        "| a | 512 | 500 | 8 | 0.50 (0.25 to 0.75) | 1.00 | 0.00 | 2.00 / 0.50 |"
    )


def test_the_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--readers={model}", "--dtype=float32", f"--output={tmp_path}", "--examples=4", "--batch-size=2"]
    flags += ["--datasets=single", "--tokens=400", "--keep-rates=0.3"]
    assert rcp(["tables", "ruler", "--methods=none,full,bm25,oracle", *flags]) == 0
    text = (tmp_path / "ruler.md").read_text()
    assert "single, 400 tokens" in text and "4 of 4 rows are complete" in capsys.readouterr().out
    assert rcp(["tables", "ruler", "--datasets=text"]) == 2
    assert '"text" needs --text=FILE' in capsys.readouterr().err
