"""The section of dynamic context pruning in a run's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DynamicConfig:
    """Dynamic context pruning (Anagnostidis et al., arXiv 2305.15805; `rcp.nn.gated`).

    `on`: the run trains this, and no scorer of prompts. `rank`: of the interaction's projections. `beta`: where its
    bias begins (published: 2 in the training command, 5 in the model's own default). `gamma`: weight of the mean of I
    over pairs of a token and an earlier one (the published .3 is of a mean that is half constant: .15 here).
    alpha goes from `alpha_begin` to `alpha_end` by a cosine over `alpha_steps` training steps (0: the whole run), and
    stays there.
    """

    on: bool = False
    rank: int = 64
    beta: float = 2.0
    gamma: float = 0.15
    alpha_begin: float = 1.0
    alpha_end: float = 8.0
    alpha_steps: int = 0

    def check(self, need: Callable[[bool, str, str], None]) -> None:
        """Ranges; `need(ok, key, expected)` raises where not ok."""
        need(self.rank > 0, "dynamic.rank", "above 0")
        need(self.gamma >= 0, "dynamic.gamma", "0 or more")
        need(self.alpha_begin >= 1, "dynamic.alpha_begin", "1 or more")
        need(self.alpha_end >= self.alpha_begin, "dynamic.alpha_end", "at least dynamic.alpha_begin")
        need(self.alpha_steps >= 0, "dynamic.alpha_steps", "0 or more")
