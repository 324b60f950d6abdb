"""The oracle: what a pruner would keep that knew which segments the answer needs."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from rcp.nn.pruner import Scores
from rcp.policies.base import Policy, spread_segments
from rcp.types import Batch


@dataclass(frozen=True)
class Oracle(Policy):
    """Needed segments first, the others by place; by place alone where the task does not know the support."""

    name = "oracle"
    granularity = "segment"

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        support = jnp.asarray(batch.support)
        segments = support.shape[1]
        place = jnp.arange(segments, dtype=jnp.float32)
        return spread_segments(jnp.where(support == 1, float(segments), 0.0) - place[None], batch)
