"""A trained pruner, behind the signature of the policies it is compared with: ours, or another run's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rcp.nn.pruner import Granularity, Scores, prune
from rcp.policies.base import Policy
from rcp.types import Batch


@dataclass(frozen=True)
class Learned(Policy):
    """`score(batch, seen, budget)` is a compiled function that gives the pruner's `Scores` from what `look(batch)` saw,
    kept in `seen` where a batch is looked at before (a look that keeps what it computes has a method `forget`);
    evaluation takes their top k. `told`: whether the budget counts in them. `name` and `granularity`: of a run that is
    a comparison, such as LLMLingua-2's classifier (`rcp.nn.encoder`).

    `draw` "sample" or "likely" heeds no budget: what the granularity "independent" keeps is drawn, seeded by `seed`
    (as CoT-Influx evaluates), or is all that has a probability above 1/2. `identity`: what decides its
    scores besides the prompts, fit for json.
    """

    name: str = "ours"  # pyright: ignore[reportIncompatibleVariableOverride]
    granularity: Granularity | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    score: Callable[[Batch, Any, Array | None], Scores] | None = None
    look: Callable[[Batch], Any] = lambda batch: None
    seen: Any = field(default=None, repr=False)
    told: bool = False
    draw: Literal["budget", "sample", "likely"] = "budget"
    seed: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.draw != "budget":
            object.__setattr__(self, "granularity", "independent")

    @property
    def swept(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.draw == "budget"

    @property
    def needs_budget(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.told

    def looking_at(self, batch: Batch, *, anew: bool = False) -> Self:
        if anew and (forget := getattr(self.look, "forget", None)) is not None:
            forget()
        return replace(self, seen=jax.block_until_ready(self.look(batch)))

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        assert self.score is not None
        scores = self.score(batch, self.look(batch) if self.seen is None else self.seen, budget)
        return _drawn(scores, batch, jax.random.fold_in(key, self.seed)) if self.draw == "sample" else scores


@jax.jit
def _drawn(scores: Scores, batch: Batch, key: Array) -> Scores:
    """Scores of which just what was drawn is positive, so that pruning without a key keeps exactly that.

    Each example has its own key, so that the draw does not depend on the batch it is in.
    """
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch.index)
    nothing = jnp.zeros(batch.index.shape, jnp.int32)
    found = prune(scores, batch, nothing, granularity="independent", keys=keys)
    survived = found.segment_rank < found.drawn[:, None]
    return Scores(jnp.where(found.keep, 1.0, -1.0), jnp.where(survived, 1.0, -1.0))
