"""Your own questions: a JSONL file of {"question", "answer", "context" or "examples"} rows, with SmolLM2-135M.

    rcp train --config=configs/jsonl.py --workdir=runs/mine --config.task.path=mine.jsonl
    rcp eval --workdir=runs/mine

`rcp/data/tasks/jsonl.py` says what a row may hold. A tenth of the rows is set aside for validation and a tenth for the
test; files of their own are given by `--config.task.validation_path` and `test_path`. A row over the limits below
stops and is named: raise them as your rows need, or let `--config.data.overlong=drop_segments` shorten long contexts.

Variants: `configs/jsonl.py:rl` (reinforcement alone), `:supervised` (labels alone), default both. None needs to be told
which segments an answer needs: the labels say how much worse it gets without a segment. They cost a reading of every
segment's absence (`max_segments` full readings an example; the draws cost four short ones), so `:rl` is much the
cheapest on a CPU. Where rows have "support", `--config.labels.source=support` makes labels for nothing.
"""

from ml_collections import ConfigDict

VARIANTS = ("both", "rl", "supervised")


def get_config(variant: str = "both") -> ConfigDict:
    c = ConfigDict()
    c.task = {"name": "jsonl", "path": "", "validation_path": "", "test_path": ""}
    c.data = {"batch_size": 8, "lengths": (256, 512, 1024), "max_segments": 16, "max_answer": 32}
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "hidden", "layer": 1, "width": 64, "depth": 2, "heads": 2}
    c.budget = {"granularity": "segment", "keep_rates": (0.25, 0.5)}
    supervised, rl = {"bce": 1.0}, {"ppo": 1.0, "entropy": 0.01}
    c.objectives = {"both": supervised | rl, "rl": rl, "supervised": supervised}[variant]
    c.labels = {"source": "leave_one_out"}
    c.policy = {"samples": 4, "updates": 4, "normalise": True, "clip": 0.5}
    c.optim = {"learning_rate": 1e-3, "warmup_steps": 20, "weight_decay": 0.01}
    c.train = {"steps": 100, "log_every": 1, "checkpoint_every": 10}
    c.eval = {"keep_rates": (0.5, 0.25), "examples": 200, "batch_size": 8}
    return c
