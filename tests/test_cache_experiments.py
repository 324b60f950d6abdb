"""The experiments on lossless decoding, streaming and runs with models of their own, on models in miniature."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import eviction_answers, lossless, lossless_report, prompts, streaming, streaming_report
from rcp.eviction import KeyDiff
from rcp.eviction.position import SinksWindow
from rcp.eviction.prompt import Eviction
from rcp.infer.trained_eviction import TrainedEviction
from rcp.pretrained import load
from tests.evaluate.own_data import tiny_model as tiny_folder
from tests.infer.test_prompt import Letters
from tests.tiny import VOCABULARY, tiny_model

pytestmark = pytest.mark.lax


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "model")


def test_lossless_is_measured_once_and_drawn_from_its_cells(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RCP_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(lossless, "SETS", (("gsm8k", 220, 1.0),))  # of facts, since there is no such data
    flags = [f"--model={folder}", "--dtype=float32", "--policies=snapkv", "--keep=0.25", "--gammas=2"]
    flags += ["--prompts=4", "--batch=2", "--new=8", "--int8-drafts", f"--output={tmp_path}"]
    assert lossless.main(flags) == 0
    rows = json.loads((tmp_path / "lossless.json").read_text())["all"]
    row, rounded = rows
    assert (rounded["policy"], rounded["n"], rounded["identical"]) == ("snapkv+int8", 4, 4)
    assert (row["gamma"], row["n"], row["identical"]) == (2, 4, 4) and row["kept"] == pytest.approx(0.25, abs=0.01)
    assert 0 <= row["acceptance"] <= 1 <= row["a_block"] <= 3 and row["ratio"][0] > 0
    assert "| snapkv | 0.25 | 2 | 4 | 4 | - |" in (tmp_path / "lossless.md").read_text()
    cells = (tmp_path / "cells.jsonl").read_text()
    monkeypatch.setattr(lossless, "measure", lambda *_: pytest.fail("measured again"))
    assert lossless.main(flags) == 0 == lossless.main([*flags, "--minutes=0"])
    assert (tmp_path / "cells.jsonl").read_text() == cells and len(cells.splitlines()) == 4
    assert {json.loads(cell)["identity"]["task"] for cell in cells.splitlines()} == {"facts"}
    assert lossless.main([*flags, "--policies=snap"]) == 2 and "expected some of" in capsys.readouterr().err


def test_the_margin_is_that_of_the_two_tokens_that_differ():
    model = tiny_model()
    reader = lossless.ContextModel(model, Eviction(SinksWindow()), multiple=8)
    context, question, ids = [5, 3, 9, 2], [4, 1], [7, 8, 2]
    read = reader.read([context, context])
    other = [7, 11, 2]
    (found,) = lossless.margins(model, read, [question] * 2, [ids, other], [ids, ids])
    logits = model(np.array([[*context, *question, 7]]))[0, -1]
    assert found == pytest.approx(float(logits[8] - logits[11]), abs=1e-4)
    assert lossless.margins(model, read, [question] * 2, [ids, ids], [ids, ids]) == []


def lossless_cell(accepted, seconds, **identity):
    """Of two prompts."""
    kinds = {"wall": seconds, "cpu": seconds}
    counts = {"drafted": [4, 8], "accepted": accepted, "blocks": [1, 2], "new": [4, 7], "kept": 1, "entries": 4}
    identity = {**dict.fromkeys((*lossless_report.KEYS, "task", "tokens", "number", "rows"), 1), **identity}
    greedy = {"wall": 2.0, "cpu": 1.0}
    agree = {"identical": [True, accepted[1] > 3], "margin": [] if accepted[1] > 3 else [0.01]}
    return {"identity": identity, **counts, **agree, "seconds": {"greedy": greedy, "lossless": kinds, "pruning": 0.5}}


def test_summaries_are_over_prompts():
    (row,) = lossless_report.summary([lossless_cell([2, 4], 1.0), lossless_cell([3, 3], 3.0)])
    assert (row["n"], row["identical"], row["margin"], row["acceptance"]) == (4, 3, 0.01, 12 / 24)
    assert row["a_block"] == (22 - 4) / 6 and row["ratio"] == [1.0, 0.5, 1.5] and row["cpu_ratio"] == 2.0
    assert (row["greedy"], row["lossless"], row["pruning"]) == (1.0, 1.0, 0.25)


def test_rows_of_lossless_decoding_are_told_apart(tmp_path):
    same, longer = lossless_cell([2, 4], 1.0), lossless_cell([2, 4], 1.0, max_new=64)
    for cells, many in (([same], False), ([same, longer], True)):
        text = lossless_report.write_report(cells, tmp_path)
        heads = [line for line in text.splitlines() if "| identical |" in line]
        assert len(heads) == 2 and all(
            ("| most tokens |" in head) == many and "| model |" not in head for head in heads
        )


def test_a_batch_of_fewer_rows_takes_no_larger_ones_place(tmp_path):
    cells = [
        lossless_cell([2, 4], 1.0, rows=2, text="old"),
        lossless_cell([3, 4], 1.0, rows=2, text="new"),
        lossless_cell([0, 0], 1.0, rows=1, text="few"),
        lossless_cell([1, 4], 1.0, number=2, rows=1, text="few"),
    ]
    lossless_report.write_report(cells, tmp_path)
    (row,) = json.loads((tmp_path / "lossless.json").read_text())["all"]
    assert row["acceptance"] == pytest.approx((3 + 4 + 1 + 4) / 24)


def test_a_stream_that_holds_all_gives_the_texts_own_likelihood():
    model, ids = tiny_model(), np.random.default_rng(0).integers(1, VOCABULARY, 1024).astype(np.int32)
    found = streaming.feed(model, ids, Eviction(SinksWindow()), 1024, 512)
    log_probs = np.asarray(jax.nn.log_softmax(jax.jit(model)(ids[None])[0]))
    assert found["nll"] == pytest.approx([-log_probs[np.arange(1023), ids[1:]].mean()], abs=1e-4)
    assert found["entries"] == 1024 * 2 and found["position"] == 1024 and len(found["cpu"]) == 1


def test_streaming_is_measured_in_children_and_drawn(folder, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Bob is in Oslo. Ann is at home. " * 80)
    started = []

    def child(command, **_):
        started.append(command)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = streaming.main(command[3:])
        return SimpleNamespace(returncode=code, stdout=out.getvalue())

    # In its own name alone: others, matplotlib among them, have children too.
    monkeypatch.setattr(streaming, "subprocess", SimpleNamespace(run=child, PIPE=None))
    flags = [f"--model={folder}", "--dtype=float32", f"--text={text}", "--size=32", "--lengths=1024,2048"]
    flags += [f"--output={tmp_path}"]
    assert streaming.main(flags) == 0 == streaming.main(flags) and len(started) == 2
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert cells[0]["program"] == cells[1]["program"] and [len(cell["nll"]) for cell in cells] == [1, 2]
    assert cells[0]["nll"][0] == pytest.approx(cells[1]["nll"][0], abs=1e-2)  # of the same tokens but the last
    assert all(cell["position"] == 32 for cell in cells)  # repacked: positions within the cache
    shown = (tmp_path / "streaming.md").read_text()
    cache = f"sinks_window, 4 sinks, repacked positions, 32 entries, float32, {text.name}"
    assert f"{cache}: peak resident memory from 1,024 to 2,048 tokens" in shown
    rows = streaming_report.rows_of(cells)
    assert rows[0]["ppl_4096"] is None and rows[1]["ppl_0"] == pytest.approx(np.exp(np.mean(cells[1]["nll"])))
    assert streaming.main([*flags, "--decode"]) == 0 == streaming.main([*flags, "--decode"]) and len(started) == 4
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    said = cells[2:]
    assert [len(cell["cpu"]) for cell in said] == [1, 2] and all(cell["position"] == 32 for cell in said)
    assert said[0]["program"] == said[1]["program"] and len({cell["entries"] for cell in cells}) == 1
    assert f"{cache}, decoded | 2,048" in (tmp_path / "streaming.md").read_text()
    assert streaming.main([*flags, "--lengths=4096"]) == 2 and "ended with 2" in capsys.readouterr().err
    assert streaming.main([*flags, "--lengths=100"]) == 2 and "multiples of 1024" in capsys.readouterr().err


def test_streams_are_named_by_all_that_differs(tmp_path):
    identity = {"policy": "h2o", "positions": "repacked", "sinks": 4, "size": 9, "chunk": 256, "model": "m"}
    identity |= {"dtype": "float32", "text": "/a/text.txt", "length": 1024}
    base = "h2o, 4 sinks, repacked positions, 9 entries, float32"

    def names(*changes):
        return streaming_report.names_of([{"identity": identity | change} for change in changes])

    assert names({}, {"length": 2048}) == [f"{base}, text.txt"] * 2
    assert names({}, {"chunk": 64}) == [f"{base}, text.txt, chunk 256", f"{base}, text.txt, chunk 64"]
    assert names({}, {"model": "n", "decode": True})[1] == f"{base}, text.txt, decoded, model n"
    assert names({}, {"text": "/b/text.txt"})[1] == f"{base}, /b/text.txt"


@pytest.mark.parametrize("there", [True, False])
def test_prompts_of_facts_are_no_cells_of_gsm8k(there, tmp_path, monkeypatch, capsys):
    """The names that cells of GSM8K have are those of the cells that are committed."""
    monkeypatch.setenv("RCP_DATA_DIR", str(tmp_path))
    if there:
        monkeypatch.setattr(prompts, "_gsm8k", prompts._facts)
    assert len(streaming.text_of(Letters(), 1024, None)) == 1024
    said = capsys.readouterr()
    assert ("made of facts" in said.err) is not there and not said.out  # a child's stdout is its numbers
    monkeypatch.setattr(lossless, "SETS", (("gsm8k", 220, 1.0),))
    (batch,) = lossless.prompts_of(Letters(), 2, 2)
    assert batch.task == ("gsm8k" if there else "facts") and len(batch.rows) == 2
    made = SimpleNamespace(returncode=0, stdout='{"nll": [1.5]}\n')
    monkeypatch.setattr(streaming, "subprocess", SimpleNamespace(run=lambda *_, **__: made, PIPE=None))
    monkeypatch.setattr(streaming, "write_report", lambda cells, _: "")
    for flags in (["--lengths=1024"], ["--lengths=2048", "--decode"]):
        assert streaming.main([*flags, f"--output={tmp_path}"]) == 0
    (tmp_path / "text").touch()
    assert streaming.main(["--lengths=1024", f"--text={tmp_path / 'text'}", f"--output={tmp_path}"]) == 0
    cells = [json.loads(line)["identity"] for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    name = "worked examples" if there else "facts"
    assert [cell["text"] for cell in cells] == [name, name, str(tmp_path / "text")]
    published = Path(streaming.__file__).parent / "results" / "streaming" / "cells.jsonl"
    identity = json.loads(published.read_text().splitlines()[0])["identity"]
    assert (identity | {"length": 1024} == cells[0]) is there


def test_answers_of_runs_are_measured_once_at_once_and_streamed(folder, tmp_path, monkeypatch, capsys):
    """Where all is kept every row answers as the whole cache does; a run's own model answers in its row alone."""

    def tuned(name, loaded):
        model = load(str(folder), dtype="float32").model
        model.norm[...] = 2 * model.norm[...]
        return TrainedEviction(model, Eviction(KeyDiff()), str(name).endswith("own"))

    monkeypatch.setattr(eviction_answers, "load_tuned", tuned)
    flags = [f"--model={folder}", "--dtype=float32", "--tasks=single", "--tokens=320", "--examples=3", "--batch-size=2"]
    flags += ["--chunk=32", f"--output={tmp_path}"]
    rows = "--rows=full,shorter,random,snapkv,runs/scorer,runs/own"
    assert eviction_answers.main([*flags, rows, "--rates=1,.25"]) == 0
    assert eviction_answers.main([*flags, "--rows=full,sinks_window,runs/scorer", "--stream=352"]) == 0
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    drawn = {cell["identity"]["row"]: cell["identity"].get("batch_size") for cell in cells}
    assert {row for row, size in drawn.items() if size} == {"random"} and drawn["random"] == 2
    found = {(cell["identity"]["row"], cell["identity"]["budget"], cell["identity"]["stream"]): cell for cell in cells}
    full = found["full", 1.0, 0]["nll"]
    assert len(cells) == 6 * 2 - 1 + 3 and len(full) == 3
    for name, budget, stream in [("random", 1.0, 0), ("shorter", 1.0, 0), ("scorer", 1.0, 0), ("scorer", 352.0, 352)]:
        np.testing.assert_allclose(found[name, budget, stream]["nll"], full, rtol=1e-4)
    for name in ("random", "snapkv", "scorer"):
        cell = found[name, 0.25, 0]
        assert cell["held"] == pytest.approx(0.25, abs=0.01) and not np.allclose(cell["nll"], full, rtol=1e-3)
    assert not np.allclose(found["own", 1.0, 0]["nll"], full, rtol=1e-2)
    shown = capsys.readouterr().out
    assert "### single, 320 tokens, n = 3" in shown and "| own less it, NLL, 25 % |" in shown and "352 entries" in shown
    monkeypatch.setattr(eviction_answers, "measure", lambda *_: pytest.fail("measured again"))
    assert eviction_answers.main([*flags, rows, "--rates=1,.25"]) == 0
    assert eviction_answers.main([*flags, "--rows=kvzip"]) == 2
    assert "kvzip cannot be measured so" in capsys.readouterr().err
    assert eviction_answers.main([*flags, "--rows=snapkv,runs/snapkv"]) == 2
    assert "two are called snapkv" in capsys.readouterr().err
