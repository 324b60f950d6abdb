"""From scratch: a two-layer model learns *chain* on 4 to 7 statements, then a pruner lets it answer questions about 32.

    rcp train --config=configs/chain.py --workdir=runs/chain && rcp eval --workdir=runs/chain

Variants: `configs/chain.py:rl` (reinforcement alone), `:supervised` (labels alone), default both.
Training and table take about 4 minutes on 2 CPU cores.

What to expect of exact match on 500 test questions (seed 0, each variant): ours at 25 % kept 1.00, as the oracle; bm25
.43; random .12, where the chance that it draws what is needed is .11; the reader alone, with all 32 statements, .53 (it
reads short contexts without error).
"""

from ml_collections import ConfigDict

VARIANTS = ("both", "rl", "supervised")


def get_config(variant: str = "both") -> ConfigDict:
    c = ConfigDict()
    c.task = {
        "name": "chain",
        "segments": (32, 32),
        "test_segments": (32, 32),
        "needed": (1, 3),
        "variables": 32,
        "trace": True,
    }
    c.data = {"batch_size": 32, "lengths": (140,), "max_segments": 32, "max_answer": 6, "train_examples": 8192}
    c.model = {
        "name": "scratch",
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 2,
        "head_dim": 32,
        "d_ff": 64,
    }
    c.reader = {
        "steps": 4000,
        "learning_rate": 5e-3,
        "warmup_steps": 100,
        "batch_size": 64,
        "lengths": (36,),
        "task": {"segments": (4, 7), "needed": (1, 6), "train_size": 50_000},
    }
    c.scorer = {"kind": "standalone", "width": 64, "depth": 3, "heads": 2}
    c.budget = {"granularity": "segment", "keep_rates": (0.25,)}
    supervised, rl = {"bce": 1.0}, {"ppo": 1.0, "entropy": 0.003}
    c.objectives = {"both": {"bce": 0.3, **rl}, "rl": rl, "supervised": supervised}[variant]
    c.labels = {"source": "support"}
    c.policy = {"samples": 8, "updates": 4}
    c.optim = {"learning_rate": 2e-3, "warmup_steps": 10, "weight_decay": 0.01}
    c.train = {"steps": 80, "log_every": 5, "checkpoint_every": 500}
    c.eval = {"keep_rates": (0.5, 0.25, 0.125), "examples": 500, "batch_size": 100}
    return c
