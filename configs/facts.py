"""A question-aware pruner for SmolLM2-135M on *facts*: 16 sentences; the question needs one or two linked ones.

    rcp train --config=configs/facts.py --workdir=runs/facts && rcp eval --workdir=runs/facts

Variants: `configs/facts.py:rl` (reinforcement alone, which does not learn here), `:supervised` (labels alone), default
both. Labels are the sentences that the task says are needed. Training and table take 12 minutes on 2 idle CPU cores;
expect about .68 exact match at 25 % kept where the full context gets .12 (experiments/results/facts.md).
"""

from ml_collections import ConfigDict

VARIANTS = ("both", "rl", "supervised")


def get_config(variant: str = "both") -> ConfigDict:
    c = ConfigDict()
    c.task = {"name": "facts", "segments": 16, "hops": (1, 2)}
    c.data = {"batch_size": 16, "lengths": (176,), "max_segments": 16, "max_answer": 6, "train_examples": 2000}
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "hidden", "layer": 1, "width": 64, "depth": 2, "heads": 2}
    c.budget = {"granularity": "segment", "keep_rates": (0.125, 0.25)}
    supervised, rl = {"bce": 1.0}, {"ppo": 1.0, "entropy": 0.01}
    c.objectives = {"both": supervised | rl, "rl": rl, "supervised": supervised}[variant]
    c.warm_start = {"steps": 120 if variant == "both" else 0, "objectives": supervised}
    c.labels = {"source": "support"}
    c.policy = {"samples": 4, "updates": 4, "normalise": True, "clip": 0.5}
    c.optim = {"learning_rate": 3e-3, "warmup_steps": 20, "weight_decay": 0.01}
    c.train = {"steps": {"both": 80, "rl": 160, "supervised": 240}[variant], "log_every": 1, "checkpoint_every": 20}
    c.eval = {"keep_rates": (0.5, 0.25, 0.125), "examples": 208, "batch_size": 26}
    return c
