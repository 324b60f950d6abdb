"""Which of sixteen worked examples of mixed kinds to show SmolLM2-135M before a short problem, at the tokens of four.

    rcp train --config=configs/reasoning.py --workdir=runs/reasoning && rcp eval --workdir=runs/reasoning

Families of reasoning-gym that this model can do from worked examples (`python -m experiments.reasoning_families` has
more). Of the sixteen candidates four are of the question's family, in any order. The pruner is not told which: its
labels are how much likelier the gold answer is after each candidate alone, judged once (`train.prepare`), and its
reward is what the model answers. The wording is as published: two families are worded alike, one has no words.
`rcp tables reasoning` compares with four and sixteen examples of the right family.
Variants: `configs/reasoning.py:rl` (reinforcement alone), `:supervised` (labels alone), default both.
"""

from ml_collections import ConfigDict

VARIANTS = ("both", "rl", "supervised")
FAMILIES = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "decimal_chain_sum": {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
        "min_decimal_places": 1,
        "max_decimal_places": 1,
    },
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 2,
        "max_digits": 2,
        "operators": ("+", "-"),
        "allow_parentheses": False,
        "allow_negation": False,
    },
    "simple_equations": {
        "max_terms": 2,
        "max_value": 20,
        "operators": ("+", "-"),
        "operators_weights": (0.5, 0.5),
    },
    "number_sequence": {"max_terms": 6, "min_value": 0, "max_value": 9, "max_complexity": 1},
}


def get_config(variant: str = "both") -> ConfigDict:
    c = ConfigDict()
    c.task = {
        "name": "reasoning_gym",
        "families": tuple(FAMILIES),
        "distractor_families": tuple(FAMILIES),
        "shots": 16,
        "distractors": 12,
        "params": FAMILIES,
    }
    c.data = {"batch_size": 8, "lengths": (512,), "max_segments": 16, "max_answer": 8, "train_examples": 160}
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "pooled", "layer": 4, "width": 32}
    c.budget = {"granularity": "segment", "keep_rates": (), "keep_tokens": (100,), "cut": "beginning"}
    supervised, rl = {"bce": 1.0}, {"ppo": 1.0, "entropy": 0.01}
    c.objectives = {"both": supervised | rl, "rl": rl, "supervised": supervised}[variant]
    c.warm_start = {"steps": 100 if variant == "both" else 0, "objectives": supervised}
    c.labels = {"source": "alone", "sharpness": 2.0, "above": 0.5}
    c.policy = {"samples": 4, "updates": 4, "normalise": True, "clip": 0.5}
    c.optim = {"learning_rate": 1e-3, "warmup_steps": 10, "weight_decay": 0.01}
    c.train = {
        "steps": {"both": 16, "rl": 60, "supervised": 100}[variant],
        "log_every": 1,
        "checkpoint_every": 4,
        "prepare": variant != "rl",
    }
    c.eval = {"keep_rates": (), "keep_tokens": (50, 100, 200), "examples": 320, "batch_size": 16}
    return c
