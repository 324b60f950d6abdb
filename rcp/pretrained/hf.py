"""A folder as `transformers` saves it: config.json, safetensors (one file or sharded), tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rcp.nn.layers import RopeScaling
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.pretrained.tokenizer import PretrainedTokenizer, from_json
from rcp.pretrained.weights import assemble
from rcp.types import UserError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_BLOCK, _ATTENTION = "model.layers.{i}.", "model.layers.{i}.self_attn."
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": _BLOCK + "input_layernorm.weight",
    "mlp_norm": _BLOCK + "post_attention_layernorm.weight",
    **{name: f"{_ATTENTION}{name}_proj.weight" for name in "qkvo"},
    **{f"{name}_bias": f"{_ATTENTION}{name}_proj.bias" for name in "qkv"},
    **{f"{name}_norm": f"{_ATTENTION}{name}_norm.weight" for name in "qk"},
    **{name: f"{_BLOCK}mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def config_from_hf(raw: Mapping[str, Any], source: str = "config.json") -> TransformerConfig:
    """Reads a `transformers` configuration of model type llama, qwen2 or qwen3, in its version 4 or 5 spelling.

    Raises:
      UserError: another architecture, or an option of it that this decoder does not compute.
    """

    def refuse(what: str) -> None:
        raise UserError(f"{source}: {what} is not supported")

    kind = raw.get("model_type")
    if kind not in ARCHITECTURES:
        raise UserError(f"{source}: model_type {kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    missing = [k for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads") if k not in raw]
    if missing:
        raise UserError(f"{source}: key {missing[0]!r} is missing")
    if raw.get("hidden_act", "silu") != "silu":
        refuse(f"hidden_act {raw['hidden_act']!r}")
    if kind == "qwen2":
        bias = True
    else:
        bias = bool(raw.get("attention_bias", False))
    if bias and kind != "qwen2":
        refuse(f"attention_bias of model_type {kind!r} (it has a bias on the output projection)")
    if raw.get("mlp_bias"):
        refuse("mlp_bias")
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        refuse("sliding-window attention")
    heads, d_model = raw["num_attention_heads"], raw["hidden_size"]
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        refuse("partial_rotary_factor")
    return TransformerConfig(
        vocab_size=raw["vocab_size"],
        d_model=d_model,
        n_layers=raw["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or d_model // heads,
        d_ff=raw["intermediate_size"],
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        rope_scaling=_rope_scaling(rope, source),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=bias,
        qk_norm=kind == "qwen3",
        max_positions=int(raw.get("max_position_embeddings", 2048)),
    )


def read_config(folder: Path) -> TransformerConfig:
    """The architecture that config.json describes; raises as `config_from_hf`."""
    return config_from_hf(_json(folder / "config.json"), str(folder / "config.json"))


def _rope_scaling(rope: Mapping[str, Any], source: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{source}: rope_type {kind!r} is not supported; supported: default, llama3")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        where = {name: folder / file for name, file in _json(index)["weight_map"].items()}
        absent = sorted({path for path in where.values() if not path.exists()})
        if absent:
            raise UserError(f"{index}: shard {absent[0].name!r} is missing from the folder ({len(absent)} in all)")
        return where
    single = folder / "model.safetensors"
    if not single.exists():
        raise UserError(
            f"{folder}: no weights; expected model.safetensors, or shards with model.safetensors.index.json, "
            "or a .gguf file"
        )
    try:
        with safe_open(single, framework="numpy") as file:
            return dict.fromkeys(file.keys(), single)
    except Exception as error:  # SafetensorError is not exported under a stable name
        raise UserError(f"{single}: not a readable safetensors file ({error})") from error


def read_model(folder: Path, dtype: str, param_dtype: str | None = None) -> Transformer:
    """Reads config.json and the weights."""
    from safetensors import safe_open

    config = read_config(folder)
    where = weight_files(folder)
    try:
        handles = {path: safe_open(path, framework="numpy") for path in set(where.values())}
    except Exception as error:
        raise UserError(f"{folder}: not a readable safetensors file ({error})") from error

    def read(name: str) -> np.ndarray:
        try:
            return handles[where[name]].get_tensor(name)
        except Exception as error:
            raise UserError(f"{where[name]}: tensor {name!r} cannot be read ({error})") from error

    ignore = ["rotary_emb.inv_freq", *(["lm_head.weight"] if config.tie_embeddings else [])]
    return assemble(config, NAMES, read, where.keys(), str(folder), dtype=dtype, param_dtype=param_dtype, ignore=ignore)


def read_tokenizer(folder: Path) -> PretrainedTokenizer:
    """Reads tokenizer.json; special tokens and chat template from tokenizer_config.json or chat_template.jinja."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{path} is missing: only tokenizers in the `tokenizers` library's format are supported")
    extra = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    template = extra.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")

    def special(key: str) -> str | None:
        value = extra.get(key)
        return value["content"] if isinstance(value, dict) else value

    return from_json(path, special("bos_token"), special("eos_token"), special("pad_token"), template)
