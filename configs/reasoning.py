"""Which of 64 worked examples of mixed kinds to show SmolLM2-135M before a short problem, at the tokens of four.

    rcp train --config=configs/reasoning.py --workdir=runs/reasoning && rcp eval --workdir=runs/reasoning

Questions are of reasoning-gym families that this model can do from worked examples, as far as a small survey tells
(experiments/results/reasoning.md). Of the 64 candidates 32 are of the question's family, in any order, others of the
other families and of two worded like one of them (`ALIKE`). The pruner is not told which is which: its labels
are how much likelier the gold answer is after each candidate alone (`train.prepare`), its reward is what the model
answers after sixteen choices that the scorer draws by then; both are judged once (`policy.logged`). `rcp tables
reasoning` compares with four and sixteen examples of the right family.
Variants: `configs/reasoning.py:rl` (reinforcement alone), `:supervised` (labels alone), default both.
Expect exact match .50 at 108 tokens (random .34, bm25 .44, sixteen of the family at four times the tokens .49); 68
minutes to train on one shared CPU core (experiments/results/reasoning.md).
"""

from ml_collections import ConfigDict

VARIANTS = ("both", "rl", "supervised")
FAMILIES = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "products": {"max_digits": 1},
    "lcm": {"max_value": 12},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "calendar_arithmetic": {"tasks": ("is_leap_year",)},
}
ALIKE = {
    "decimal_chain_sum": {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
        "min_decimal_places": 1,
        "max_decimal_places": 1,
    },
    "gcd": {"max_value": 20},
}


def get_config(variant: str = "both") -> ConfigDict:
    c = ConfigDict()
    c.task = {
        "name": "reasoning_gym",
        "families": tuple(FAMILIES),
        "distractor_families": (*FAMILIES, *ALIKE),
        "shots": 64,
        "distractors": 32,
        "params": FAMILIES | ALIKE,
    }
    c.data = {"batch_size": 8, "lengths": (2048,), "max_segments": 64, "max_answer": 8, "train_examples": 640}
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "linear", "apart": True, "layer": 4, "products": True}
    c.budget = {"granularity": "segment", "keep_rates": (), "keep_tokens": (108,), "cut": "beginning"}
    supervised, rl = {"bce": 1.0}, {"ppo": 1.0}
    c.objectives = supervised if variant == "supervised" else rl
    c.warm_start = {"steps": 300 if variant == "both" else 0, "objectives": supervised}
    c.labels = {"source": "alone", "sharpness": 2.0, "above": 0.5}
    c.policy = {"samples": 16, "normalise": True, "clip": 0.5, "logged": variant != "supervised"}
    c.optim = {"learning_rate": 1e-3, "warmup_steps": 10, "weight_decay": 0.01}
    c.train = {
        "steps": 320,
        "log_every": 1,
        "checkpoint_every": 20,
        "prepare": variant != "rl",
    }
    c.eval = {"keep_rates": (), "keep_tokens": (54, 108, 216), "examples": 320, "batch_size": 16}
    return c
