"""A bidirectional encoder over the context's tokens, blind to the question: the trunk of LLMLingua-2's classifier.

Pan et al., "LLMLingua-2: Data Distillation for Efficient and Faithful Task-Agnostic Prompt Compression", arXiv
2403.12968: a token is kept by its probability under a classifier that reads the whole text, before and behind it.

Departures: there a pretrained encoder (XLM-RoBERTa, multilingual BERT) on windows of 512 tokens, trained on what GPT-4
kept of meeting transcripts. Here a small encoder on the early states of the reader, which reads the prompt in its own
order and so knows no question in the context either; over the whole context at once; and trained on keep-labels that
the reader's answers give (`labels.source`). The tokens that the authors force (signs, digits) are forced spans here
(`rcp prune --force`), and hold for every method alike.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rcp.nn.layers import rope_frequencies, rope_tables, rotate
from rcp.nn.match import attend_within, layer_norm, normal, over_queries

THETA = 10_000.0  # base of the rotary frequencies


class EncoderBlock(nnx.Module):
    """Attention to all valid tokens, earlier and later, then an MLP; each is added to the residual stream."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = normal(rngs, width, 3 * width)
        self.out = normal(rngs, width, width, scale=0.5 * width**-0.5)
        self.up = normal(rngs, width, 4 * width)
        self.down = normal(rngs, 4 * width, width, scale=0.5 * (4 * width) ** -0.5)

    def __call__(
        self, x: Float[Array, "batch tokens width"], valid: Bool[Array, "batch tokens"]
    ) -> Float[Array, "batch tokens width"]:
        """`valid`: tokens that others may look at. What comes out at others is of no use."""
        batch, tokens, width = x.shape
        q, k, v = jnp.split(layer_norm(x) @ self.qkv[...], 3, axis=-1)
        q, k, v = (y.reshape(batch, tokens, self.heads, width // self.heads) for y in (q, k, v))
        place = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None], (batch, tokens))
        rope = rope_tables(place, rope_frequencies(width // self.heads, THETA))
        q, k = rotate(q, *rope), rotate(k, *rope)
        one = jnp.zeros((batch, tokens), jnp.int32)  # the whole context is one piece
        (mixed,) = over_queries(partial(attend_within, k, v, one, valid), q, one)
        x = x + mixed.reshape(x.shape) @ self.out[...]
        return x + jax.nn.gelu(layer_norm(x) @ self.up[...]) @ self.down[...]
