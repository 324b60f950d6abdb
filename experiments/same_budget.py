"""Methods against the token budget, 1x to 20x compression, with the seconds of pruning and reading and the break-even.

What Jiang et al., "LLMLingua", arXiv 2310.05736, and its successors report, with the cost of pruning beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.cot_influx_main import METHODS
from experiments.grid import Table, chosen, parser_of, settings_of
from experiments.tables import run_table

NAME = "same_budget"
RATES = (1.0, 0.5, 0.2, 0.1, 0.05)
"""1x, 2x, 5x, 10x and 20x."""


def main(argv: Sequence[str]) -> int:
    """Measures, writes and prints the table."""
    options = parser_of(NAME, __doc__, keep_rates=RATES).parse_args(argv)
    table = Table(
        title="Methods against the token budget",
        about="The same candidates for every method, from all to a twentieth of their tokens: @ 0.05 is 20x.",
        settings=settings_of(options),
        methods=chosen([method for method in METHODS if not method.task], options.methods),
    )
    return run_table(NAME, table, options)
