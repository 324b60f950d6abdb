"""Random pruning: the least that any method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rcp.nn.pruner import Scores
from rcp.policies.base import Policy
from rcp.types import Batch


@partial(jax.jit, static_argnums=(2, 3))
def _draw(key: Array, index: Int[Array, " batch"], tokens: int, segments: int) -> Scores:
    """Uniform scores. Each place has a key of its own, so that padding to another length changes no draw."""

    def uniform(key: Array, count: int) -> Float[Array, " count"]:
        return jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place)))(jnp.arange(count))

    def of_example(number: Array) -> Scores:
        of_tokens, of_segments = jax.random.split(jax.random.fold_in(key, number))
        return Scores(tokens=uniform(of_tokens, tokens), segments=uniform(of_segments, segments))

    return jax.vmap(of_example)(index)


@dataclass(frozen=True)
class Random(Policy):
    """Independent uniform scores, drawn from `key` and the example's number, so that batching changes no draw."""

    name = "random"
    draws = True

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        return _draw(key, jnp.asarray(batch.index), batch.tokens.shape[1], batch.support.shape[1])
