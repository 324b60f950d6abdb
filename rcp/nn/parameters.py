"""The decoder's architecture, and its parameters: their shapes and how they start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rcp.nn.layers import RopeScaling


@dataclass(frozen=True)
class TransformerConfig:
    """The architecture: RMSNorm, rotary embedding, grouped-query attention, SwiGLU; Llama 2/3, SmolLM2, Qwen2/2.5/3.

    Attributes:
      rope_scaling: None, or Llama 3's (a `RopeScaling` or a dict of its fields).
      tie_embeddings: the head is the transposed embedding.
      qkv_bias: biases on q, k and v (Qwen2). qk_norm: RMSNorm on each head of q and k (Qwen3).
      max_positions: longest sequence the model was trained for, in tokens; not enforced here, but where prompts are
        tokenised (`rcp.data.pipeline`).
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    max_positions: int = 2048

    def __post_init__(self):
        if isinstance(self.rope_scaling, Mapping):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embedding pairs its dimensions")


MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer; the rest are norms and biases


def parameter_shapes(config: TransformerConfig) -> dict[str, Any]:
    """The parameter tree as shapes. Matrices are [inputs, outputs]; all under "layers" is stacked over layers."""
    c, queries, keys = config, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layers = {
        "attention_norm": (c.d_model,),
        "q": (c.d_model, queries),
        "k": (c.d_model, keys),
        "v": (c.d_model, keys),
        "o": (queries, c.d_model),
        "mlp_norm": (c.d_model,),
        "gate": (c.d_model, c.d_ff),
        "up": (c.d_model, c.d_ff),
        "down": (c.d_ff, c.d_model),
    }
    if c.qkv_bias:
        layers |= {"q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,)}
    if c.qk_norm:
        layers |= {"q_norm": (c.head_dim,), "k_norm": (c.head_dim,)}
    shapes: dict[str, Any] = {
        "embedding": (c.vocab_size, c.d_model),
        "layers": {name: (c.n_layers, *shape) for name, shape in layers.items()},
        "norm": (c.d_model,),
    }
    if not c.tie_embeddings:
        shapes["head"] = (c.d_model, c.vocab_size)
    return shapes


def init_parameters(config: TransformerConfig, key: Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Normal with deviation 0.02, the projections into the residual stream scaled by 1 / sqrt(2 layers) (GPT-2)."""

    def leaf(path, shape):
        name = path[-1].key
        if name.endswith("norm"):
            return jnp.ones(shape, dtype)
        if name.endswith("bias"):
            return jnp.zeros(shape, dtype)
        scale = 0.02 / (2 * config.n_layers) ** 0.5 if name in ("o", "down") else 0.02
        number = sum(ord(c) << (8 * i) for i, c in enumerate(name[:3]))  # a key by name: adding a parameter moves none
        return (scale * jax.random.normal(jax.random.fold_in(key, number), shape)).astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, parameter_shapes(config), is_leaf=lambda x: isinstance(x, tuple))
