"""What of the method does the work: every row but three is a trained run, on the same problems, at the same budgets.

A row whose run is missing says which command trains it. Supervised, reinforced, or both; what the scorer is and sees,
by labels alone; pruners of tokens and of both shots and tokens; what the reward is made of; easy problems first. Rows
that do not change the problems need the labels that configs/rcp_math.py computes first, and its states where the scorer
sees the same: add --prepared=runs/rcp_math to their command, and those by labels alone are trained in seconds or, with
states of their own, minutes. Only rl, easy, mrd3, curriculum and cot_influx share nothing with it; curriculum takes
over what mrd3 prepared.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.grid import Method, Table, chosen, parser_of, settings_of, trained
from experiments.tables import run_table

NAME = "ablations"
CONFIG = "configs/rcp_math.py"
UNTOLD = "--config.scorer.groups=1"
TOKENS = ("--config.scorer.kind=mlp", "--config.scorer.apart=false", UNTOLD)
"""What a pruner of tokens needs: a scorer that tells the tokens of a shot apart."""

MRD3 = ("--config.task.dataset=mrd3", "--config.task.equations=0.0", "--config.task.order=difficulty")
EASY_FIRST = ("--config.data.phases=4",)
"""Of the same problems, numbered by difficulty in both rows: so the labels and states of one run serve the other."""


def run(name: str, about: str, *flags: str, variant: str = "") -> Method:
    """A row: configs/rcp_math.py with other flags."""
    return Method(name, "ours", f"ablation_{name}", CONFIG + (f":{variant}" if variant else ""), flags, about=about)


def by_labels(name: str, about: str, *flags: str) -> Method:
    """A row that is compared with "supervised", or with "untold" where it is not told either."""
    return run(name, f"keep-labels alone: {about}", *flags, variant="supervised")


def variant_of(name: str, about: str) -> Method:
    """A row: a variant of configs/rcp_math.py."""
    return Method(name, "ours", f"rcp_math_{name}", f"{CONFIG}:{name}", about=about)


METHODS = (
    Method("none", "none", about="zero-shot"),
    Method("shorter", "shorter", about="uncompressed: the first candidates that fit the budget whole"),
    Method("random", "random", about="candidates at random"),
    trained("ours"),
    variant_of("supervised", "keep-labels alone"),
    variant_of("rl", "reinforcement alone"),
    run("no_warm_start", "both objectives from the first step", "--config.warm_start.steps=0"),
    by_labels("untold", "the scorer is not told how the answer is to be written", UNTOLD),
    by_labels("hidden_layer", "an MLP instead of a linear scorer, not told", "--config.scorer.kind=pooled", UNTOLD),
    by_labels("products", "the scorer sees products of states too", "--config.scorer.products=true"),
    by_labels("no_budget", "the scorer is not told the budget", "--config.scorer.budget=false"),
    by_labels("question_blind", "the scorer does not see the question", "--config.scorer.question=false"),
    by_labels("in_prompt", "states of a shot read behind the others", "--config.scorer.apart=false"),
    run("token", "tokens alone, without whole shots", "--config.budget.granularity=token", *TOKENS),
    run("two_stage", "shots, then tokens of them", "--config.budget.granularity=two_stage", *TOKENS),
    run("length_reward", "the reward takes off the share of the context used", "--config.reward.length=0.5"),
    run("exact_reward", "exact match in the reward too", "--config.reward.exact_match=1.0"),
    by_labels("easy", "shots of MRD3 up to difficulty 3", "--config.task.max_difficulty=3"),
    by_labels("mrd3", "MRD3's problems, in any order", *MRD3),
    by_labels("curriculum", "MRD3's problems, the easy ones first", *MRD3, *EASY_FIRST),
    trained("cot_influx"),
)


def main(argv: Sequence[str]) -> int:
    """Measures, writes and prints the table."""
    options = parser_of(NAME, __doc__).parse_args(argv)
    table = Table(
        title="Ablations",
        about="configs/rcp_math.py and what changes of it, at the same budgets; lower answer NLL is better.",
        settings=settings_of(options),
        methods=chosen(METHODS, options.methods),
        x="method",
    )
    return run_table(NAME, table, options)
