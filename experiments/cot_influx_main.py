"""Word problems x methods x LLMs at equal budgets: answer NLL and, with --decode=256, exact match.

The table of Huang et al., "Fewer is More: Boosting LLM Reasoning with Reinforced Context Pruning", arXiv 2312.08901,
for any reader: every method gets the same candidates and the same number of their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.grid import Method, Table, chosen, drawn, parser_of, settings_of, trained
from experiments.tables import run_table

NAME = "cot_influx_main"
CONTRAST_TOKENS = "LongLLMLingua: of those candidates, twice the budget, the tokens that the question makes likelier"
METHODS = (
    Method("none", "none", about="zero-shot: the question alone"),
    Method("full", "full", about="all candidates, whatever the budget"),
    Method(
        "fixed",
        "shorter",
        task={"pool": "handwritten", "shots": 8},
        about="the first hand-written examples that fit the budget, the same for every question",
    ),
    Method("shorter", "shorter", about="uncompressed: the first candidates that fit the budget whole"),
    Method("random", "random", about="candidates at random"),
    Method("first", "first"),
    Method("last", "last"),
    Method("bm25", "bm25"),
    Method("embedding", "embedding"),
    Method("mmr", "mmr"),
    Method("perplexity", "perplexity", about="Selective Context, whole candidates by their mean self-information"),
    Method("perplexity_tokens", "perplexity", granularity="token", about="Selective Context, tokens"),
    Method("selective", "selective", about="Selective Context, phrases"),
    Method("contrast", "contrast", about="LongLLMLingua's coarse step: candidates that make the question likely"),
    Method("contrast_tokens", "contrast", granularity="two_stage", about=CONTRAST_TOKENS),
    Method("llmlingua", "llmlingua"),
    trained("llmlingua2"),
    trained("cot_influx"),
    drawn("cot_influx"),
    trained("ours"),
    Method("alone", "alone", about="reads the gold answer: candidates by what each alone does for it"),
    Method("greedy", "greedy", about="reads the gold answer: greedy search"),
)


def main(argv: Sequence[str]) -> int:
    """Measures, writes and prints the table."""
    options = parser_of(NAME, __doc__, datasets=("gsm8k", "svamp", "addsub", "multiarith", "singleeq")).parse_args(argv)
    table = Table(
        title="Word problems, methods and readers at equal budgets",
        about="Candidates are worked examples of GSM8K and MRD3; a budget counts their tokens.",
        settings=settings_of(options),
        methods=chosen(METHODS, options.methods),
    )
    return run_table(NAME, table, options)
