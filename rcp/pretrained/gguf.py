"""A GGUF file (llama.cpp): configuration, dequantised weights and tokenizer, all from the one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rcp.nn.layers import RopeScaling, rope_frequencies
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.pretrained.tokenizer import PretrainedTokenizer, from_merges
from rcp.pretrained.weights import assemble
from rcp.types import UserError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
NAMES = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{i}.attn_norm.weight",
    "mlp_norm": "blk.{i}.ffn_norm.weight",
    "o": "blk.{i}.attn_output.weight",
    **{name: f"blk.{{i}}.attn_{name}.weight" for name in "qkv"},
    **{f"{name}_bias": f"blk.{{i}}.attn_{name}.bias" for name in "qkv"},
    **{f"{name}_norm": f"blk.{{i}}.attn_{name}_norm.weight" for name in "qk"},
    **{name: f"blk.{{i}}.ffn_{name}.weight" for name in ("gate", "up", "down")},
}


class GGUF:
    """An open file: metadata by key, tensors by name. The weights stay on disk until they are read."""

    def __init__(self, path: Path):
        import gguf

        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise UserError(f"{path}: not a readable GGUF file ({error})") from error
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.path}: metadata key {key!r} is missing")
        return value

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32, its shape in row-major order (GGUF itself lists shapes reversed)."""
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        kind = tensor.tensor_type.name
        if kind not in TYPES:
            raise UserError(f"{self.path}: tensor {name!r} is stored as {kind}; supported: {', '.join(TYPES)}")
        shape = tuple(int(n) for n in reversed(tensor.shape))
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False).reshape(shape)


def read_config(file: GGUF) -> TransformerConfig:
    """The architecture from the metadata.

    Raises:
      UserError: another architecture, or a rotary scaling that this decoder does not compute.
    """
    kind = file.need("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(f"{file.path}: architecture {kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    if (scaling := file.get(f"{kind}.rope.scaling.type", "none")) != "none":
        raise UserError(f"{file.path}: rotary scaling {scaling!r} is not supported")
    heads, d_model = int(file.need(f"{kind}.attention.head_count")), int(file.need(f"{kind}.embedding_length"))
    if NAMES["embedding"] not in file.tensors:
        raise UserError(f"{file.path}: tensor {NAMES['embedding']!r} is missing")
    head_dim = int(file.get(f"{kind}.attention.key_length", d_model // heads))
    if int(file.get(f"{kind}.rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{file.path}: rotary embedding of part of each head is not supported")
    theta = float(file.get(f"{kind}.rope.freq_base", 10000.0))
    return TransformerConfig(
        vocab_size=int(file.tensors[NAMES["embedding"]].shape[1]),
        d_model=d_model,
        n_layers=int(file.need(f"{kind}.block_count")),
        n_heads=heads,
        n_kv_heads=int(file.get(f"{kind}.attention.head_count_kv", heads)),
        head_dim=head_dim,
        d_ff=int(file.need(f"{kind}.feed_forward_length")),
        rope_theta=theta,
        rope_scaling=_rope_scaling(file, head_dim, theta),
        norm_eps=float(str(np.float32(file.need(f"{kind}.attention.layer_norm_rms_epsilon")))),  # 1e-6, not 9.99..e-7
        tie_embeddings=NAMES["head"] not in file.tensors,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        max_positions=int(file.get(f"{kind}.context_length", 2048)),
    )


def _rope_scaling(file: GGUF, head_dim: int, theta: float) -> RopeScaling | None:
    """GGUF keeps Llama 3's scaling as a tensor of divisors; find the published settings that give it."""
    if "rope_freqs.weight" not in file.tensors:
        return None
    divisors = file.read("rope_freqs.weight").reshape(-1)
    plain = np.asarray(rope_frequencies(head_dim, theta))
    scaling = RopeScaling(factor=float(divisors.max()))
    if divisors.shape != plain.shape or not np.allclose(
        plain / divisors, np.asarray(rope_frequencies(head_dim, theta, scaling)), rtol=1e-4
    ):
        raise UserError(f"{file.path}: tensor 'rope_freqs.weight' is not Llama 3's rotary scaling")
    return scaling


def read_model(file: GGUF, dtype: str, param_dtype: str | None = None) -> Transformer:
    """Reads and dequantises the weights. llama.cpp interleaves the rows of llama's q and k for its own rotary kernel;
    that order is undone here."""
    config = read_config(file)
    interleaved = file.need("general.architecture") == "llama"

    def fix(name: str, value: np.ndarray) -> np.ndarray:
        if not interleaved or name not in ("q", "k"):
            return value
        heads = config.n_heads if name == "q" else config.n_kv_heads
        rows = value.reshape(heads, config.head_dim // 2, 2, value.shape[1])
        return rows.swapaxes(1, 2).reshape(value.shape)

    return assemble(
        config,
        NAMES,
        file.read,
        file.tensors.keys(),
        str(file.path),
        dtype=dtype,
        param_dtype=param_dtype,
        fix=fix,
        ignore=["rope_freqs.weight"],
    )


def read_tokenizer(file: GGUF) -> PretrainedTokenizer:
    """Builds the byte-level BPE tokenizer described in the metadata."""
    kind = file.need("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(f"{file.path}: tokenizer {kind!r} is not supported; supported: gpt2 (byte-level BPE)")
    tokens = file.need("tokenizer.ggml.tokens")
    try:
        return from_merges(
            tokens,
            file.need("tokenizer.ggml.merges"),
            file.get("tokenizer.ggml.token_type", [1] * len(tokens)),
            file.get("tokenizer.ggml.pre", "default"),
            bos_id=file.get("tokenizer.ggml.bos_token_id"),
            eos_id=file.get("tokenizer.ggml.eos_token_id"),
            pad_id=file.get("tokenizer.ggml.padding_token_id"),
            chat_template=file.get("tokenizer.chat_template"),
        )
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error
