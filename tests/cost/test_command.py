"""`rcp cost` from the command line, on models whose weights are not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rcp import cli
from rcp.cost.work import Stored, decoded_by, parameters
from rcp.nn.parameters import TransformerConfig
from rcp.pretrained import read_shape
from tests.pretrained.test_gguf import CONFIG, random_tensors, write

ROOT = Path(__file__).parents[2]
REFERENCES = ROOT / "tests" / "references"
SMALL = ["--context=64", "--fixed=8", "--new=4", "--segments=2"]


@pytest.fixture
def folder(tmp_path):
    """A folder with a configuration and nothing else."""
    shutil.copy(REFERENCES / "qwen2-tied" / "config.json", tmp_path)
    return tmp_path


def cost(capsys, *arguments):
    assert cli.main(["cost", *map(str, arguments), *SMALL, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_configuration_is_enough(folder, capsys):
    found = cost(capsys, folder)
    assert found["model"]["qkv_bias"] and found["model"]["n_kv_heads"] == 2
    assert found["model"]["parameters"] == parameters(read_shape(folder))
    assert found["memory"]["whole"]["tokens_read"] == 72 and found["memory"]["keep 0.25"]["tokens_read"] == 24
    assert found["memory"]["keep 0.25"]["cache"] < found["memory"]["whole"]["cache"]
    assert found["work"]["whole"]["score"]["flops"] == 0 < found["work"]["keep 0.25"]["score"]["flops"]
    assert {device["name"] for device in found["devices"]} >= {"h100-sxm", "tpu-v5e"}
    assert all(device["fits"]["training"] and device["fits"]["whole"] for device in found["devices"])


def test_the_page_shows_what_the_command_prints(capsys):
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    command, _, rest = page.split("## Example", 1)[1].partition("```text\n")
    assert cli.main(command.split()[1:]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines()]
    assert rest.split("```", 1)[0].splitlines() == printed


def test_dtype_decides_bytes_and_peak(folder, capsys):
    single, half = cost(capsys, folder), cost(capsys, folder, "--dtype=bfloat16")
    assert half["memory"]["whole"]["cache"] - 8 == (single["memory"]["whole"]["cache"] - 8) / 2
    tpu = [next(d for d in found["devices"] if d["name"] == "tpu-v5e") for found in (single, half)]
    assert tpu[0]["seconds"]["whole"]["total"] is None and tpu[0]["break_even"] == {}
    assert tpu[1]["seconds"]["whole"]["total"] > 0


def test_weights_in_8_bits_are_less_to_read_a_token_and_a_smaller_copy(folder, capsys):
    """By the same bytes; a prompt is read by the weights as they are."""
    plain, rounded = cost(capsys, folder), cost(capsys, folder, "--int8-weights")
    shape = read_shape(folder)
    single = decoded_by(shape)
    saved = single - decoded_by(shape, Stored(int8_weights=True))
    assert 0.5 * single < saved < 0.75 * single
    head = shape.d_model * shape.vocab_size * 4
    for name in ("whole", "keep 0.25", "evict 0.25"):
        before, after = plain["memory"][name], rounded["memory"][name]
        assert before["decoding"] - after["decoding"] == saved - head and before["weights"] == after["weights"]
        before, after = plain["work"][name], rounded["work"][name]
        assert before["token"]["bytes"] - after["token"]["bytes"] == saved
        assert before["token"]["flops"] == after["token"]["flops"] and before["read"] == after["read"]


def test_the_metadata_of_a_gguf_file_is_enough(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "m.gguf", CONFIG, random_tensors(CONFIG))
    monkeypatch.setattr("rcp.pretrained.gguf.GGUF.read", None)  # no tensor can be read
    assert cost(capsys, path)["model"]["parameters"] == parameters(CONFIG)


def test_of_a_hub_id_only_the_configuration_is_fetched(tmp_path, capsys, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetch(hub_id, *, allow_patterns, local_dir):
        asked[hub_id] = allow_patterns
        shutil.copy(REFERENCES / "llama3-tied" / "config.json", local_dir)
        return str(local_dir)

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert cost(capsys, "someone/model")["model"]["rope_scaling"]["factor"] > 1
    assert asked == {"someone/model": "config.json"}
    assert not list(tmp_path.iterdir())


def test_a_run_s_configuration_names_model_scorer_and_training(capsys):
    found = cost(
        capsys,
        f"--config={ROOT}/configs/chain.py",
        "--config.model.vocab_size=40",
        "--config.scorer.kind=standalone",
        "--config.policy.samples=3",
    )
    assert found["model"]["vocab_size"] == 40
    assert found["scorer"]["kind"] == "standalone"
    assert found["training"]["pruner"]["draws"] == 3


def test_a_device_of_ones_own(folder, capsys):
    found = cost(capsys, folder, "--memory-gb=0.0001", "--bandwidth-gbs=25", "--tflops=0.2")
    (device,) = found["devices"]
    assert device["name"] == "yours" and not device["fits"]["whole"]
    parts = device["seconds"]["keep 0.25"]
    assert parts["total"] == pytest.approx(parts["score"] + parts["read"] + 4 * parts["token"])
    assert parts["token"] == pytest.approx(found["work"]["keep 0.25"]["token"]["bytes"] / 25e9)


def test_the_tables(folder, capsys):
    assert cli.main(["cost", str(folder), *SMALL, "--device", "h100-sxm", "--keep-rate", "0.25"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "KV cache",
        "keep 0.25",
        "break-even",
        "optimizer",
        "h100-sxm",
        "Lower bounds",
        "score the prompt",
    ):
        assert expected in text
    assert "tpu" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep-rate=0"], "--keep-rate is 0.0: expected shares of the context in (0, 1]"),
        (["--batch=0"], "--batch is 0: expected a number above 0"),
        (["--device", "abacus"], "no device 'abacus' is known"),
        (["--tflops=1"], "needs all of --memory-gb, --bandwidth-gbs and --tflops"),
        (["--longest=8"], "--longest is 8: expected more than --fixed, 8"),
        (["--config.scorer.layer=9"], "config.scorer.layer is 9: expected 0 to 2"),
        (["--config.scorer.kid=mlp"], "unknown config key config.scorer.kid"),
    ],
)
def test_what_cannot_be_is_said(folder, capsys, arguments, message):
    assert cli.main(["cost", str(folder), *arguments, *SMALL]) == 2
    assert message in capsys.readouterr().err


def test_without_a_model_it_says_what_to_give(capsys):
    assert cli.main(["cost"]) == 2
    assert "give --config.model.vocab_size=N, or a MODEL" in capsys.readouterr().err


def test_a_model_from_scratch_of_impossible_dimensions(capsys):
    assert cli.main(["cost", "--config.model.vocab_size=9", "--config.model.n_kv_heads=3"]) == 2
    assert "config.model: n_heads=4 is not a multiple of n_kv_heads=3" in capsys.readouterr().err


def test_the_published_shape_of_smollm2():
    """From the metadata of the wheel's file."""
    shape = read_shape("smollm2-135m-instruct")
    assert isinstance(shape, TransformerConfig)
    assert parameters(shape) == 134_515_008
