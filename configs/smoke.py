"""Tiny and from scratch: a two-layer model learns *chain*, then a pruner for it. For tests and for trying a change.

The whole run takes under a minute on CPU.

    rcp train --config=configs/smoke.py --workdir=runs/smoke && rcp eval --workdir=runs/smoke
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError("configs/smoke.py has no variants")
    c = ConfigDict()
    c.task = {"name": "chain", "segments": (2, 4), "test_segments": (8, 8), "needed": (1, 2), "variables": 8}
    c.data = {"batch_size": 16, "lengths": (40,), "max_segments": 8, "max_answer": 1, "train_examples": 256}
    c.model = {"name": "scratch", "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_ff": 64}
    c.reader = {"steps": 20, "learning_rate": 3e-3}
    c.scorer = {"kind": "standalone", "width": 32, "depth": 2, "heads": 2}
    c.budget = {"keep_rates": (0.25, 0.5)}
    c.objectives = {"bce": 1.0, "nll": 0.1, "ppo": 1.0, "entropy": 0.01}
    c.policy = {"samples": 4, "updates": 2}
    c.train = {"steps": 20, "log_every": 1, "checkpoint_every": 10}
    c.eval = {"keep_rates": (0.5, 0.25), "examples": 32}
    return c
