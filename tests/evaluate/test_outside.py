"""Evaluation by a model in another process, from the command line to the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rcp.cli import main
from rcp.data.pack import collate
from rcp.data.pipeline import EncodedTask
from rcp.data.tasks.chain import Chain
from rcp.data.text import Texts
from rcp.evaluate.tables import read_results
from rcp.types import Role
from tests.endpoint.server import count, serving

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.lax
TINY = """
import runpy

def get_config(variant=""):
    config = runpy.run_path("{smoke}")["get_config"]().to_dict()
    config["objectives"] = {{"bce": 1.0}}
    config["reader"]["steps"] = config["train"]["steps"] = 1
    config["parallel"] = {{"devices": 1}}
    config["eval"] = {{"keep_rates": (0.5, 0.25), "examples": 12, "batch_size": 8,
                       "methods": ("full", "none", "first", "oracle", "ours")}}
    return config
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.py").write_text(TINY.format(smoke=ROOT / "configs" / "smoke.py"))
    assert main(["train", f"--config={folder / 'tiny.py'}", f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture
def workdir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def values(workdir: Path, metric: str) -> dict[tuple[str, float], float | None]:
    rows = json.loads((workdir / "eval_endpoint" / "report.json").read_text())
    return {(row["method"], row["keep_rate_asked"]): row["value"] for row in rows if row["metric"] == metric}


def test_from_the_command_line_to_the_report(url: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", f"--workdir={workdir}", "--reader=openai", f"--base_url={url}", "--concurrency=3"]
    before = count(url)
    assert main(command) == 0
    sent, out = count(url) - before, capsys.readouterr().out
    em, nll = values(workdir, "em"), values(workdir, "nll")
    assert em["full", 1.0] == em["oracle", 0.5] == em["oracle", 0.25] == 1.0, "two statements of eight are needed"
    assert em["none", 0.0] == 0.0 and em["first", 0.25] < em["first", 0.5] < 1.0
    assert set(nll.values()) == {None} and "not available" in out and "nan" not in out.lower()
    text = (workdir / "eval_endpoint" / "report.md").read_text()
    assert "not available" in text and "the answer was decoded greedily and judged by the task" in text
    assert not (workdir / "eval").exists(), "a report by our own reader is another"
    results = read_results(workdir / "eval_endpoint" / "results.npz")
    np.testing.assert_array_equal(results.kept[results.settings.index(("ours", 0.25))], 8)
    for row in json.loads((workdir / "eval_endpoint" / "sent.json").read_text()):
        assert (row["n"], row["sent_exactly"]) == (12, 1.0), row
    # Stopped and begun again: nothing is asked twice, whatever of the findings is lost.
    shutil.rmtree(workdir / "eval_endpoint" / "cells")
    lines = (workdir / "eval_endpoint" / "requests.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == sent
    (workdir / "eval_endpoint" / "requests.jsonl").write_text("".join(lines[: sent // 2]))
    assert main(command) == 0
    assert count(url) - before == sent + (sent - sent // 2)
    assert values(workdir, "em") == em and main(command) == 0
    assert count(url) - before == sent + (sent - sent // 2)


def test_likelihoods_and_samples(url: str, workdir: Path) -> None:
    command = ["eval", f"--workdir={workdir}", "--reader=openai", f"--base_url={url}/v1", "--reader_model=solver"]
    methods = "--config.eval.methods=['full', 'none']"
    assert main([*command, methods, "--logprobs", "--config.eval.samples=3"]) == 0
    assert values(workdir, "em") == {("full", 1.0): 1.0, ("none", 0.0): 0.0}, "two of three samples say it"
    assert values(workdir, "nll") == {("full", 1.0): 1.0, ("none", 0.0): 6.0}, "two letters, -0.5 or -3 each"
    text = (workdir / "eval_endpoint" / "report.md").read_text()
    assert "the answer that most of 3 samples gave (temperature 0.7) was judged" in text


def test_what_is_wrong_is_said(url: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", f"--workdir={workdir}", "--reader=openai", "--config.eval.endpoint.retries=0"]
    assert main(command) == 2
    assert "config.eval.endpoint.base_url" in capsys.readouterr().err
    assert main([*command, "--base_url=http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9/v1/models: no answer" in capsys.readouterr().err
    assert main([*command, f"--base_url={url}", "--reader_model=broken"]) == 2
    assert f'{url}/v1/completions: HTTP 500: {{"error": "out of order"}}' in capsys.readouterr().err


def test_texts_are_as_the_task_writes_them() -> None:
    task = Chain(segments=(4, 4), test_segments=(4, 4), variables=6)
    tokenizer = task.tokenizer()
    encoded = EncodedTask(task, tokenizer, "test", 3, lengths=(16,), max_segments=3, overlong="drop_segments")
    batch = collate([encoded[i] for i in range(3)], 16, 3, 3)
    texts = Texts(encoded, tokenizer)
    for row, (sent, whole) in enumerate(zip(texts.of(batch), (encoded[i] for i in range(3)))):
        assert whole.numbers is not None and len(whole.numbers) == 3, "the fourth does not fit"
        example = encoded.examples[row]
        assert sent.text == "".join(example.context[n] for n in whole.numbers) + example.question
    inside = batch.role[0] == Role.CONTEXT
    mask = np.arange(inside.sum()) % 4 < 2
    assert texts.context(batch, 0, mask).split() == tokenizer.decode(batch.tokens[0][inside][mask].tolist()).split()
