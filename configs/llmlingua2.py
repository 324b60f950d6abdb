"""LLMLingua-2's token classifier, trained here on keep-labels: a comparison for the runs of configs/rcp_math.py.

    rcp train --config=configs/llmlingua2.py --workdir=runs/llmlingua2
    rcp eval --workdir=runs/rcp_math --config.eval.runs.llmlingua2=runs/llmlingua2

Problems, candidates and model are those of rcp_math. The classifier (rcp/nn/encoder.py) reads the whole context and
never the question; its labels say what each token does for the gold solution, to first order. A step takes 5 minutes
of a CPU core, most of it the backward pass of the whole model over 16 shots; the row of
experiments/results/rcp_math.md was trained on four (--config.task.shots=4 --config.data.lengths=(768,)
--config.data.overlong=drop_segments --config.data.max_segments=4 --config.train.steps=24), in 21 minutes.
Variants: `configs/llmlingua2.py:gsm8k`, for the runs of configs/gsm8k.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

VARIANTS = ("rcp_math", "gsm8k")


def get_config(variant: str = "rcp_math") -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name(f"{variant}.py")))["get_config"]("supervised")
    c = ConfigDict({name: base[name] for name in ("task", "data")})
    c.model = {**base.model, "remat": True}  # the labels' backward pass goes through the whole model
    c.scorer = {"kind": "llmlingua2", "layer": 4, "width": 64, "depth": 2, "heads": 2}
    c.budget = {"granularity": "token", "keep_rates": (0.25, 0.5)}
    c.objectives = {"bce": 1.0}
    c.labels = {"source": "tokens", "sharpness": 2.0, "above": 0.0}
    c.policy = {"updates": 4}
    c.optim = {"learning_rate": 1e-3, "warmup_steps": 10, "weight_decay": 0.01}
    c.train = {"steps": 48, "log_every": 1, "checkpoint_every": 4}
    c.eval = {"keep_rates": (0.5, 0.25), "examples": 128, "batch_size": 8}
    return c
