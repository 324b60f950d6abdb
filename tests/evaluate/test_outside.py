"""Evaluation by a model in another process, from the command line to the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rcp.cli import main
from rcp.config import EndpointConfig
from rcp.data.pack import collate
from rcp.data.pipeline import EncodedTask
from rcp.data.tasks.chain import Chain
from rcp.data.tasks.facts import Facts
from rcp.data.text import Texts
from rcp.endpoint.client import Client
from rcp.evaluate.answers import Decoding
from rcp.evaluate.budgets import Budget
from rcp.evaluate.outside import Outside
from rcp.evaluate.tables import read_results
from rcp.nn.pruner import Scores
from rcp.policies import First, Full
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
    # Stopped and begun again: nothing is asked twice, whatever of the findings is lost, and all of it is counted.
    shutil.rmtree(workdir / "eval_endpoint" / "cells")
    lines = (workdir / "eval_endpoint" / "requests.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == sent
    (workdir / "eval_endpoint" / "requests.jsonl").write_text("".join(lines[: sent // 2]))
    assert main(command) == 0
    assert count(url) - before == sent + (sent - sent // 2)
    (workdir / "eval_endpoint" / "sent.json").unlink()
    assert values(workdir, "em") == em and main(command) == 0
    for row in json.loads((workdir / "eval_endpoint" / "sent.json").read_text()):
        assert (row["n"], row["sent_exactly"]) == (12, 1.0), row
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base_url=http://127.0.0.1:9"], "endpoint.base_url is given, but this run's own model is the reader: add"),
        (["--reader=model", "--reader_model=solver"], "endpoint.model is given, but"),
        (["--api=chat"], "endpoint.api is given, but"),
        (["--logprobs"], "endpoint.logprobs is given, but"),
        (["--config.eval.endpoint.max_new=9"], "endpoint.max_new is given, but"),
        (
            ["--reader=openai", "--base_url=http://127.0.0.1:9", "--config.eval.decode=16"],
            "config.eval.decode = 16: expected 0 or config.eval.endpoint.max_new (256)",
        ),
    ],
)
def test_flags_that_the_reader_would_not_look_at_are_refused(
    trained: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["eval", f"--workdir={trained}", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (trained / "eval").exists() and not (trained / "eval_endpoint").exists()


def test_texts_are_as_the_task_writes_them() -> None:
    task = Chain(segments=(4, 4), test_segments=(4, 4), variables=6)
    tokenizer = task.tokenizer()
    encoded = EncodedTask(task, tokenizer, "test", 3, lengths=(16,), max_segments=3, overlong="drop_segments")
    batch = collate([encoded[i] for i in range(3)], 16, 3, 3)
    texts = Texts(encoded, tokenizer)
    for row, (sent, whole) in enumerate(zip(texts.of(batch, batch.role != Role.PAD), (encoded[i] for i in range(3)))):
        assert whole.numbers is not None and len(whole.numbers) == 3, "the fourth does not fit"
        example = encoded.examples[row]
        assert sent.text == "".join(example.context[n] for n in whole.numbers) + example.question
    inside = batch.role[0] == Role.CONTEXT
    mask = np.arange(inside.sum()) % 4 < 2
    assert texts.context(batch, 0, mask).split() == tokenizer.decode(batch.tokens[0][inside][mask].tolist()).split()


class Bytes:
    """A token a byte; two spaces are one token."""

    vocab_size, pad_id, eos_id = 300, 256, 257

    def encode(self, text: str) -> list[int]:
        out: list[int] = []
        for byte in text.encode():
            if byte == 32 and out[-1:] == [32]:
                out[-1] = 258
            else:
                out.append(byte)
        return out

    def decode(self, ids: list[int]) -> str:
        return b"".join(b"  " if i == 258 else bytes([i]) for i in ids).decode(errors="replace")


@pytest.mark.parametrize("granularity", ["token", "segment"])
def test_the_budget_is_met_in_the_text_that_is_sent(granularity: str) -> None:
    """Of sentences that are cut, the space before them stays: the text grows, and its budget is met anew."""
    task, tokenizer = Facts(segments=3), Bytes()
    encoded = EncodedTask(task, tokenizer, "test", 4, lengths=(256,), max_segments=3)
    batch = collate([encoded[i] for i in range(4)], 256, 3, 4)
    outside = Outside(
        Client(EndpointConfig(base_url="http://127.0.0.1:9")), Texts(encoded, tokenizer), task.check, Decoding(4)
    )
    rng = np.random.default_rng(0)
    scores = Scores(*(rng.normal(size=shape).astype(np.float32) for shape in (batch.tokens.shape, (4, 3))))
    budget, rest = Budget(0.4), {"granularity": granularity, "cut": "end"}
    spend = np.asarray(budget.of(batch))
    keep, kept, sent = outside.prune(First(), budget, scores, batch, spend, **rest)  # pyright: ignore
    found = sent.summary()
    assert (found["n"], found["sent_exactly"], found["sent_over"]) == (4, 1.0, 0.0)
    assert granularity == "segment" or found["unmended_over"] > 0, "it is needed here"
    np.testing.assert_array_equal(kept, (keep & (batch.role == Role.CONTEXT)).sum(axis=1))
    for text, tokens, example in zip(outside.texts.of(batch, keep), spend, encoded.examples):
        assert len(tokenizer.encode(text.context)) == tokens
        assert (text.instruction, text.question) == (example.instruction, example.question)
    everything = (batch.role == Role.CONTEXT).sum(axis=1)
    whole = outside.prune(Full(), Budget(1.0), scores, batch, everything, **rest)  # pyright: ignore
    assert whole.sent.sent.tolist() == [len(tokenizer.encode("".join(e.context))) for e in encoded.examples]
