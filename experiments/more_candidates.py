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
from experiments.tables import run_table

NAME = "more_candidates"
ROWS = ("none", "full", "shorter", "random", "bm25", "embedding", "mmr", "perplexity", "cot_influx", "ours", "alone")


def nested(setting: Setting) -> Setting:
    """The setting with candidates that hold those of every smaller number."""
    return replace(setting, name=f"{setting.name}_nested", task={**setting.task, "candidates": "nested"})


def main(argv: Sequence[str]) -> int:
    """Measures, writes and prints the table."""
    options = parser_of(NAME, __doc__, shots=(4, 8, 16, 32), keep_tokens=(256,)).parse_args(argv)
    table = Table(
        title="More candidates at the same budget",
        about="Every method keeps the same number of tokens; what grows is what it may choose from.",
        settings=tuple(nested(setting) for setting in settings_of(options)),
        methods=chosen(METHODS, options.methods or ROWS),
        x="setting",
        x_label=f"candidates, at {', '.join(map(str, options.keep_tokens[-1:]))} tokens",
    )
    return run_table(NAME, table, options)
