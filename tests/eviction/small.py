"""A decoder with two key-value heads, prompts of unequal lengths, and all that its layers compute of them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rcp.eviction.compaction import Candidates, compact
from rcp.nn.cache import Context, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.transformer import Transformer, TransformerConfig

VOCABULARY, LAYERS, HEADS, KV_HEADS, DIM = 24, 2, 4, 2, 8
GROUP = HEADS // KV_HEADS
LENGTHS = (21, 14)
WIDTH = 24


def small_model(layers: int = LAYERS, dtype: str = "float32") -> Transformer:
    """A random decoder whose attention is far from uniform."""
    config = TransformerConfig(
        vocab_size=VOCABULARY, d_model=16, n_layers=layers, n_heads=HEADS, n_kv_heads=KV_HEADS, head_dim=DIM, d_ff=24
    )
    graph, params = nnx.split(Transformer(config, rngs=nnx.Rngs(0), dtype=dtype))
    return nnx.merge(graph, jax.tree.map(lambda x: (x * 10).astype(x.dtype) if x.ndim > 1 else x, params))


def prompts(side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """Tokens and validity [2, WIDTH] of prompts of `LENGTHS` tokens."""
    rng = np.random.default_rng(0)
    tokens, valid = np.zeros((len(LENGTHS), WIDTH), np.int32), np.zeros((len(LENGTHS), WIDTH), bool)
    for i, length in enumerate(LENGTHS):
        where = slice(0, length) if side == "right" else slice(WIDTH - length, WIDTH)
        tokens[i, where], valid[i, where] = rng.integers(1, VOCABULARY, length), True
    return tokens, valid


@partial(jax.jit, static_argnames=("capacities", "repack"))
def compacted(found: Candidates, keep: Any, frequencies: Any, *, capacities: Any, repack: bool = False) -> Context:
    """`compact`, compiled whole."""
    return compact(found, keep, capacities, repack=repack, frequencies=frequencies)


def reads_behind(model: Transformer) -> Any:
    """The compiled function from a context and tokens [batch, tokens] to hidden states."""

    @jax.jit
    def hidden(context, tokens):
        return read_chunk(model, tokens, tail_of(context, tokens.shape[1]), context=context, slots=0)[0]

    return hidden


class Layer(NamedTuple):
    """What a layer computes of one prompt, in float64: [tokens, heads, dim]."""

    q: np.ndarray
    q_plain: np.ndarray
    k: np.ndarray
    v: np.ndarray
    x: np.ndarray


def layers_of(model: Transformer, row: np.ndarray) -> list[Layer]:
    """Every layer's tensors of one prompt without padding, read at once."""

    @jax.jit
    def read(tokens):
        cache = model.new_cache(1, tokens.shape[1])
        one = jnp.zeros((model.config.n_layers,), jnp.float32)
        return read_chunk(model, tokens, cache, slots=0, observe=lambda _, read: read.projected, observed=one)[2]

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), read(jnp.asarray(row)[None]))
    return [Layer(p.q[i, 0], p.q_plain[i, 0], p.k[i, 0], p.v[i, 0], p.x[i, 0]) for i in range(model.config.n_layers)]
