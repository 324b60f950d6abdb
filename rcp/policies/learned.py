"""A trained pruner, behind the signature of the policies it is compared with: ours, or another run's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array

from rcp.nn.pruner import Granularity, Scores
from rcp.policies.base import Policy
from rcp.types import Batch


@dataclass(frozen=True)
class Learned(Policy):
    """`score(params, batch, budget)` is a compiled function that gives the pruner's `Scores`; evaluation takes their
    top k. `told`: whether the budget counts in them. `name` and `granularity`: of a run that is a comparison, such as
    LLMLingua-2's classifier (`rcp.nn.encoder`).
    """

    name: str = "ours"  # pyright: ignore[reportIncompatibleVariableOverride]
    granularity: Granularity | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    score: Callable[[Any, Batch, Array | None], Scores] | None = None
    params: Any = field(default=None, repr=False)
    told: bool = False

    @property
    def needs_budget(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.told

    def scores(self, batch: Batch, *, key: Array, budget: Array | None = None) -> Scores:
        assert self.score is not None
        return self.score(self.params, batch, budget)
