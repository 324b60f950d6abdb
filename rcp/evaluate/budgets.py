"""The budgets of a sweep: keep rates, and numbers of tokens where the pruner was trained for some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from rcp.evaluate.results import real_rows
from rcp.nn.layout import context_tokens
from rcp.nn.pruner import budget_of_rate
from rcp.types import Batch, UserError


@dataclass(frozen=True)
class Budget:
    """What may be kept of a context: the fraction `rate` of its tokens, or at most `tokens` of them.

    Where `tokens` is given, `rate` is only what tables call the budget: the mean over the examples of its share.
    """

    rate: float
    tokens: int | None = None

    def of(self, batch: Batch) -> Any:
        """Context tokens to keep of each example, int32 [batch]."""
        if self.tokens is not None:
            return jnp.minimum(self.tokens, context_tokens(batch)).astype(jnp.int32)
        return budget_of_rate(batch, self.rate)

    @property
    def key(self) -> str:
        """Names the budget in stored results. With `tokens` it is the same for any examples, which `rate` is not."""
        return f"{self.rate:g}" if self.tokens is None else f"{self.tokens} tokens"

    def __str__(self) -> str:
        return f"{self.rate:g}" if self.tokens is None else f"{self.rate:g} ({self.tokens} tokens)"


def make_budgets(batches: Sequence[Batch], keep_rates: Sequence[float], keep_tokens: Sequence[int]) -> list[Budget]:
    """One budget a keep rate, and before them one for each of `keep_tokens`, which takes the place of an equal rate.

    Raises:
      UserError: a keep rate outside (0, 1]; two numbers of tokens that keep the same of these contexts.
    """
    for rate in keep_rates:
        if not 0 < rate <= 1:
            raise UserError(f"config.eval.keep_rates: {rate} is outside (0, 1]")
    budgets = {rate: Budget(rate) for rate in keep_rates}
    counts = real_rows(batches, [np.asarray(context_tokens(batch)) for batch in batches])
    fixed = {}
    for tokens in keep_tokens:
        share = round(float(np.mean(np.minimum(tokens, counts) / np.maximum(counts, 1))), 4)
        if share in fixed and fixed[share].tokens != tokens:
            raise UserError(
                f"eval.keep_tokens {fixed[share].tokens} and {tokens} both keep {share:g} of these contexts, which "
                f"have at most {int(counts.max())} tokens: give one of them"
            )
        fixed[share] = Budget(share, tokens)
    return list({**fixed, **{rate: budget for rate, budget in budgets.items() if rate not in fixed}}.values())


def forced_over(batches: Sequence[Batch], budgets: Sequence[Budget]) -> str:
    """A line that says how many examples have more forced tokens than their budget, or "" where none has.

    Forced tokens are kept all the same, so that such an example spends more than was asked.
    """
    forced = real_rows(batches, [np.sum(batch.forced, axis=1) for batch in batches])
    over = {
        str(budget): int(np.sum(forced > real_rows(batches, [np.asarray(budget.of(batch)) for batch in batches])))
        for budget in budgets
    }
    said = ", ".join(f"{count} of {len(forced)} at {budget}" for budget, count in over.items() if count)
    return f"examples whose forced tokens exceed their budget, and are kept all the same: {said}" if said else ""
