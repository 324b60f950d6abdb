"""The objectives by name.

To add one: a function of (Outcome, Settings) -> [batch], and a line here and in `rcp.config` (docs/extending.md).
"""

from rcp.objectives import budget, policy, supervised
from rcp.objectives.base import Draws, Labels, Objective, Outcome, Settings, combine, global_mean

OBJECTIVES: dict[str, Objective] = {
    "nll": Objective(supervised.nll, frozenset({"relaxed"})),
    "kl": Objective(supervised.kl, frozenset({"relaxed", "full"})),
    "bce": Objective(supervised.bce, frozenset({"labels"})),
    "reinforce": Objective(policy.reinforce, frozenset({"draws"})),
    "ppo": Objective(policy.ppo, frozenset({"draws"})),
    "entropy": Objective(policy.entropy, frozenset({"draws"})),
    "budget": Objective(budget.budget, frozenset({"relaxed", "multiplier"})),
}

__all__ = ["OBJECTIVES", "Draws", "Labels", "Objective", "Outcome", "Settings", "combine", "global_mean"]
