"""Bytes that must be held at a time: weights, KV cache, gradients, optimizer state, activations.

Symbols as in `rcp.cost.work`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rcp.cost.work import FLOAT32, SINGLE, Stored, attended, blocks_of, parameters
from rcp.nn.attention import REMATERIALISE
from rcp.nn.parameters import TransformerConfig
from rcp.nn.reader import CHUNK


def parameter_bytes(shape: TransformerConfig, stored: Stored = SINGLE) -> int:
    """(parameters) * (bytes a number)."""
    return parameters(shape) * stored.params


def cache_bytes(shape: TransformerConfig, capacity: int, *, batch: int = 1, stored: Stored = SINGLE) -> int:
    """2 L B (capacity) kv * (bytes a number), and 8 bytes an example: its length and position."""
    numbers = 2 * shape.n_layers * batch * capacity * shape.n_kv_heads * shape.head_dim
    return numbers * stored.compute + 8 * batch


def optimizer_bytes(trained: int, *, accumulate: int = 1) -> int:
    """AdamW's two moments of `trained` float32 parameters; accumulated gradients where an update has several."""
    return trained * FLOAT32 * (2 + (accumulate > 1))


@dataclass(frozen=True)
class Training:
    """Bytes of a training step. `activations`: what the backward pass needs of the forward one."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def training(
    shape: TransformerConfig,
    tokens: int,
    *,
    batch: int,
    answer: int,
    accumulate: int = 1,
    remat: bool = False,
    stored: Stored = SINGLE,
) -> Training:
    """Bytes of a step that trains every parameter."""
    count = parameters(shape)
    return Training(
        count * stored.params,
        count * stored.params,
        optimizer_bytes(count, accumulate=accumulate),
        activation_bytes(shape, tokens, batch=batch, answer=answer, remat=remat, stored=stored),
    )


def activation_bytes(
    shape: TransformerConfig, tokens: int, *, batch: int, answer: int, remat: bool = False, stored: Stored = SINGLE
) -> int:
    """What a training step keeps of its forward pass for its backward pass.

    Of each layer, in numbers a token: 6 d, 5 f and q in float32 (both norms and what they are of; gate, up and what
    SiLU makes of them; what attention gives), and the operands of the products, 2 d (5 d in bfloat16, where the
    products of one input each keep a copy), f, 2 q and the keys and values that each block sees. Scores twice, after
    the exponential and as an operand. Past `REMATERIALISE` tokens attention keeps its inputs alone. With `remat` only
    its input is kept of a layer, and one layer at a time is computed again.
    """
    c, rows = shape, batch * tokens
    layer = _layer_activations(c, tokens, batch, stored)
    layers = c.n_layers * FLOAT32 * rows * c.d_model + layer if remat else c.n_layers * layer
    masks = 0 if remat or tokens > REMATERIALISE else batch * c.n_heads * attended(tokens) * (FLOAT32 + 1)
    places = batch * answer
    padded = places if places <= CHUNK else -(-places // CHUNK) * CHUNK
    logits = min(places, CHUNK) * c.vocab_size * FLOAT32 + padded * c.d_model * stored.compute
    return layers + masks + rows * (3 * c.d_model + c.head_dim) * FLOAT32 + logits


def _layer_activations(shape: TransformerConfig, tokens: int, batch: int, stored: Stored) -> int:
    c, rows = shape, batch * tokens
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    again = tokens > REMATERIALISE
    singles = 6 * c.d_model + 5 * c.d_ff + 3 * (q + kv) * c.qk_norm + (0 if again else q)
    operands = (2 if stored.compute == FLOAT32 else 5) * c.d_model + c.d_ff + 2 * q
    seen = sum(keys * (1 if again else blocks) for _, keys, blocks in blocks_of(tokens))
    scores = 0 if again else batch * c.n_heads * attended(tokens)
    kept = rows * operands + 2 * batch * seen * kv + scores
    return (rows * singles + scores) * FLOAT32 + kept * stored.compute


def reading_bytes(
    shape: TransformerConfig, tokens: int, capacity: int, *, batch: int = 1, stored: Stored = SINGLE
) -> int:
    """What reading a prompt holds beside weights and the cache that it gives, at the fullest moment; an estimate.

    The new keys of all layers (XLA puts the values where the result will be); and of one layer the stream twice, q and
    2 kv, and twice the scores of one block (before and after the exponential), or the MLP's 2 f if these are more. Of
    several blocks XLA may hold more than one at a time: at 600 to 1,200 tokens that nearly doubles the part which does
    not grow with depth. `capacity` 0: no cache.
    """
    c, rows = shape, batch * tokens
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    block = max((queries // blocks) * keys for queries, keys, blocks in blocks_of(tokens))
    working = max(rows * (q + 2 * kv) + 2 * batch * c.n_heads * block, rows * 2 * c.d_ff) + 2 * rows * c.d_model
    keys = c.n_layers * rows * kv * stored.compute if capacity else 0
    return keys + working * FLOAT32
