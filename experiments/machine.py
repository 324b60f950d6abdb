"""What this machine can do at most, measured: bytes read a second and matrix products; and the floors these set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rcp.cost.work import SIZES, Stored, attended, decoded_by, forward
from rcp.nn.parameters import TransformerConfig

READ, SIDE, TIMES = 128 << 20, 2048, 5  # numbers read for the bandwidth; side of the matrices; repeats, the best counts


@dataclass(frozen=True)
class Machine:
    """Attributes:
    bandwidth: bytes a second that a matrix-vector product or a sum over a large array reads.
    peak: FLOPs a second of a product of large square matrices, summed up in float32, by dtype.
    """

    bandwidth: float
    peak: dict[str, float]

    def floor(self, flops: float, moved: float, dtype: str) -> float:
        """Seconds."""
        return max(flops / self.peak[dtype], moved / self.bandwidth)


def measured() -> Machine:
    wide = jnp.ones((512, READ // 512))
    row = jnp.ones((1, 512))
    readers = (jax.jit(lambda x, a: x @ a), jax.jit(lambda x, a: jnp.sum(a, axis=1)))
    bandwidth = max(wide.nbytes / _best(lambda f=f: f(row, wide)) for f in readers)
    peak = {}
    for dtype in SIZES:
        square = jnp.ones((SIDE, SIDE), dtype)
        product = jax.jit(lambda a: lax.dot(a, a, preferred_element_type=jnp.float32))
        peak[dtype] = 2 * SIDE**3 / _best(lambda f=product, a=square: f(a))
    return Machine(bandwidth, peak)


def _best(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def reading(shape: TransformerConfig, tokens: int, batch: int) -> float:
    """FLOPs of reading prompts, logits after the last token included; of attention the causal half alone."""
    skipped = attended(tokens) - tokens * (tokens + 1) // 2
    products = forward(shape, tokens, batch=batch, logits=1).products
    return products - 4 * batch * shape.n_layers * shape.n_heads * shape.head_dim * skipped


def decoding(
    shape: TransformerConfig, slots: int, batch: int, dtype: str, *, int8_weights: bool = False
) -> tuple[float, float]:
    """FLOPs and bytes of one token a row behind `slots` entries: every weight and every entry once."""
    flops = forward(shape, 1, batch=batch, past=slots, logits=1).products
    weights = decoded_by(shape, Stored(SIZES[dtype], SIZES[dtype], int8_weights))
    entries = 2 * batch * shape.n_layers * slots * shape.n_kv_heads * shape.head_dim
    return flops, float(weights + entries * SIZES[dtype])
