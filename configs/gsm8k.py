"""Which of eight worked examples to show SmolLM2-135M before a word problem (GSM8K), at half their tokens.

    rcp train --config=configs/gsm8k.py --workdir=runs/gsm8k && rcp eval --workdir=runs/gsm8k

Variants: `configs/gsm8k.py:rl` (reinforcement alone), `:supervised` (labels alone), default both. Needs the GSM8K files
(`rcp doctor` says where they are looked for). The measure is the NLL of the gold solution: this model solves almost
none. Labels say how much each example helps when it stands alone; draws keep one or two examples, which makes reading
cheap. Expect 1.19 nats a token at half the tokens, level with retrieval and behind the full context's 1.18
(experiments/results/gsm8k.md).
"""

from ml_collections import ConfigDict

VARIANTS = ("both", "rl", "supervised")


def get_config(variant: str = "both") -> ConfigDict:
    c = ConfigDict()
    c.task = {"name": "gsm8k", "shots": 8, "pool_size": 400, "max_words": 100, "validation_size": 500}
    c.data = {
        "batch_size": 8,
        "lengths": (1408, 1664, 2048, 2560),
        "max_segments": 8,
        "max_answer": 384,
        "train_examples": 1600,
    }
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "mlp", "layer": 4, "width": 128}
    c.budget = {"granularity": "segment", "keep_rates": (0.125, 0.25)}
    supervised, rl = {"bce": 1.0}, {"ppo": 1.0, "entropy": 0.01}
    c.objectives = {"both": supervised | rl, "rl": rl, "supervised": supervised}[variant]
    c.labels = {"source": "alone", "sharpness": 2.0, "above": 0.5}
    c.policy = {"samples": 4, "updates": 4, "normalise": True, "clip": 0.5}
    c.reward = {"exact_match": 0.0, "likelihood": 1.0}
    c.optim = {"learning_rate": 1e-3, "warmup_steps": 10, "weight_decay": 0.01}
    c.train = {"steps": 40, "log_every": 1, "checkpoint_every": 5}
    c.eval = {"keep_rates": (0.5,), "examples": 128, "batch_size": 8}
    return c
