"""Answer NLL, and exact match with --decode=256, against the number of candidates at a fixed budget of tokens.

The claim of the field (Huang et al., arXiv 2312.08901): more candidates to choose from are worth more in the same
prompt. A method that does not choose gains nothing from them. A problem's fewer candidates are among its more, so that
two numbers differ by the candidates added and not by the luck of two draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.cot_influx_main import METHODS
from experiments.grid import Setting, Table, chosen, parser_of, settings_of
from experiments.table_lines import budgets_of
from experiments.tables import run_table
from rcp.types import UserError

NAME = "more_candidates"
ROWS = ("none", "full", "shorter", "random", "bm25", "embedding", "mmr", "perplexity", "cot_influx", "ours", "alone")


def nested(setting: Setting) -> Setting:
    """The setting with candidates that hold those of every smaller number."""
    return replace(setting, name=f"{setting.name}_nested", task={**setting.task, "candidates": "nested"})


def x_label(settings: Sequence[Setting]) -> str:
    """Of the x axis, with the budget that the figure draws: the last, which is the smallest.

    Raises:
      UserError: there is no budget, or no setting.
    """
    budgets = [budget for setting in settings[:1] for budget in budgets_of(setting)]
    if not budgets:
        raise UserError("nothing to measure: expected a reader, a data set, --shots and --keep-tokens or --keep-rates")
    return f"candidates, at {budgets[-1]}{'' if settings[0].keep_tokens else ' of their tokens'}"


def main(argv: Sequence[str]) -> int:
    """Measures, writes and prints the table."""
    options = parser_of(NAME, __doc__, shots=(4, 8, 16, 32), keep_tokens=(256,), methods=ROWS).parse_args(argv)
    settings = tuple(nested(setting) for setting in settings_of(options))
    table = Table(
        title="More candidates at the same budget",
        about="Every method keeps the same number of tokens; what grows is what it may choose from.",
        settings=settings,
        methods=chosen(METHODS, options.methods),
        x="setting",
        x_label=x_label(settings),
    )
    return run_table(NAME, table, options)
