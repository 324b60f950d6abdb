"""What the tests of the pruner share: small batches, random scores, and `prune` compiled once for each granularity."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from rcp.nn import pruner
from rcp.nn.pruner import Pruned, Scores
from rcp.types import Batch
from tests.tiny import Prompt

GRANULARITIES = ("token", "segment", "two_stage")
LENGTH, SEGMENTS = 24, 5
FORCED = (Prompt((2, 3, 1), forced=((1, 2),)), Prompt((1, 4, 2, 3), instruction=0))
TRACES: list[tuple[str, bool]] = []


@partial(jax.jit, static_argnames=("granularity", "cut"))
def prune(scores, batch, budget, granularity, keys=None, cut="end") -> Pruned:
    TRACES.append((granularity, keys is None))
    return pruner.prune(scores, batch, budget, granularity=granularity, cut=cut, keys=keys)


def random_scores(seed: int, batch: Batch, scale: float = 1.0) -> Scores:
    rng = np.random.default_rng(seed)
    rows, length = batch.role.shape
    draw = [scale * rng.normal(size=shape).astype(np.float32) for shape in ((rows, length), batch.support.shape)]
    return Scores(*draw)
