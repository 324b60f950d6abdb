"""Which of eight worked examples to show SmolLM2-135M before a word problem (GSM8K), at half their tokens.

    rcp train --config=configs/gsm8k.py --workdir=runs/gsm8k && rcp eval --workdir=runs/gsm8k

Candidates are drawn from GSM8K and MRD3 together. The measure is the NLL of the gold solution: this model solves almost
none. First every candidate of 320 training problems is judged by how much it helps the gold solution when it stands
alone, once (`train.prepare`). A warm start learns these labels; then draws at a quarter and at half of the tokens are
rewarded for the solution's likelihood, beside the labels. The example that crosses the budget loses its beginning.
Expect 1.188 nats a token at half the tokens, random shots 1.204, retrieval 1.201, perplexity 1.196, full context 1.192;
17 minutes to train and 21 to evaluate on 2 idle CPU cores (experiments/results/gsm8k.md).
Variants: `configs/gsm8k.py:rl` (reinforcement alone), `:supervised` (labels alone), default both. Needs the files of
GSM8K and MRD3 (`rcp doctor` says where they are looked for).
"""

from ml_collections import ConfigDict

VARIANTS = ("both", "rl", "supervised")


def get_config(variant: str = "both") -> ConfigDict:
    c = ConfigDict()
    c.task = {
        "name": "gsm8k",
        "shots": 8,
        "pool": "gsm8k+mrd3",
        "pool_size": 1000,
        "max_words": 80,
        "validation_size": 500,
    }
    c.data = {
        "batch_size": 8,
        "lengths": (1152, 1408),
        "max_segments": 8,
        "max_answer": 384,
        "train_examples": 320,
    }
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "pooled", "layer": 8, "width": 32, "budget": True}
    c.budget = {"granularity": "segment", "keep_rates": (0.25, 0.5), "cut": "beginning"}
    supervised, rl = {"bce": 1.0}, {"ppo": 1.0, "entropy": 0.01}
    c.objectives = {"both": supervised | rl, "rl": rl, "supervised": supervised}[variant]
    c.warm_start = {"steps": 100 if variant == "both" else 0, "objectives": supervised}
    c.labels = {"source": "alone", "sharpness": 2.0, "above": 0.5}
    c.policy = {"samples": 4, "updates": 4, "normalise": True, "clip": 0.5}
    c.reward = {"exact_match": 0.0, "likelihood": 1.0}
    c.optim = {"learning_rate": 1e-3, "warmup_steps": 10, "weight_decay": 0.01}
    c.train = {
        "steps": {"both": 16, "rl": 60, "supervised": 100}[variant],
        "log_every": 1,
        "checkpoint_every": 4,
        "prepare": variant != "rl",
    }
    c.eval = {"keep_rates": (0.5,), "examples": 128, "batch_size": 8}
    return c
