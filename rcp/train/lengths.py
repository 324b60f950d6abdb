"""The static lengths that training reads pruned prompts at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from rcp.config import BudgetConfig
from rcp.data.pack import round_up
from rcp.data.pipeline import EncodedTask

MULTIPLE = 16  # static lengths of pruned prompts are multiples of this
Lengths = Callable[[int], tuple[int, int]]
"""From the static length of a whole prompt to those that hold it pruned, and with one segment alone."""


def pruned_lengths(budget: BudgetConfig, encoded: Callable[[], EncodedTask]) -> Lengths:
    """Lengths that hold every training prompt; measured, at the widest budget, when first asked for."""

    @cache
    def measured() -> tuple[int, int]:
        examples = encoded()
        short = single = 0
        for index in range(len(examples)):
            example = examples[index]
            sizes = [len(segment) for segment in example.context]
            # At least what `pruner.budget_of_rate` computes in float32.
            kept = max(budget.keep_tokens or (int(max(budget.keep_rates) * sum(sizes) * (1 + 2**-21) + 2e-4),))
            if budget.granularity == "independent":  # no budget: all of it may be kept
                kept = sum(sizes)
            forced = sum(int(mask.sum()) for mask in example.forced)
            short = max(short, example.fixed + min(max(kept, forced, 1), sum(sizes)))
            single = max(single, example.fixed + max(sizes))
        return round_up(short, MULTIPLE), round_up(single, MULTIPLE)

    return lambda whole: (min(measured()[0], whole), min(measured()[1], whole))
