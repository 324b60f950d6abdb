"""RULER-style tasks for SmolLM2-135M at 512 to 4,096 tokens: full context, oracle, retrieval; a small pruner for one.

    rcp tables ruler --datasets=single,multikey --tokens=512,1024
    rcp train --config=configs/ruler.py:multikey_512 --workdir=runs/ruler && rcp eval --workdir=runs/ruler

The first command trains nothing: it compares what needs no training, on the reader alone (experiments/ruler.py). The
second trains a pruner that learns from the labels of the task and is then rewarded for the reader's answers.
Variants: `configs/ruler.py:TASK_TOKENS` with a task of `TASKS` and a length of `LENGTHS` (without it 1,024), such as
`single`, `multikey_2048` or `tracking_512`. `text` is perplexity and needs `--config.task.path=FILE.txt`; its pruner
has no labels and is rewarded for the likelihood of the text. How hard the tasks are was chosen by the survey in
experiments/results/ruler.md. No pruner was trained on them yet.
"""

from ml_collections import ConfigDict

TASKS = {
    "single": {"name": "needle"},
    "multikey": {"name": "needle", "keys": 4},
    "multivalue": {"name": "needle", "values": 2},
    "multiquery": {"name": "needle", "keys": 2, "queries": 2},
    "passkey": {"name": "passkey"},
    "tracking": {"name": "tracking"},
    "words": {"name": "common_words", "other_times": 1},
    "documents": {"name": "documents"},
    "text": {"name": "long_text", "path": "", "validation_path": "", "test_path": ""},
}
LENGTHS = (512, 1024, 2048, 4096)
SHORTEST = {"passkey": 4, "words": 2, "documents": 32, "text": 3}
"""Tokens that the segments of a context have at least, on average; those of the other tasks have 8."""
VARIANTS = (*TASKS, *(f"{task}_{tokens}" for task in TASKS for tokens in LENGTHS))


def get_config(variant: str = "multikey") -> ConfigDict:
    task, _, length = variant.partition("_")
    tokens = int(length or 1024)
    c = ConfigDict()
    c.task = TASKS[task] | {"tokens": tokens}
    if task == "words":
        c.task.times = tokens // 8
    c.data = {
        "batch_size": 8,
        "lengths": (tokens,),
        "max_segments": tokens // SHORTEST.get(task, 8),
        "max_answer": 64 if task == "text" else 32,
        "train_examples": None if task == "text" else 400,
    }
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "hidden", "layer": 1, "width": 64, "depth": 2, "heads": 2}
    c.budget = {"granularity": "segment", "keep_rates": (0.1, 0.25)}
    supervised, rl = {"bce": 1.0}, {"ppo": 1.0, "entropy": 0.01}
    c.objectives = rl if task == "text" else supervised | rl
    c.warm_start = {"steps": 0 if task == "text" else 60, "objectives": supervised}
    c.labels = {"source": "support"}
    c.policy = {"samples": 4, "updates": 4, "normalise": True, "clip": 0.5}
    c.reward = {"exact_match": 0.0 if task == "text" else 1.0, "likelihood": 1.0}
    c.optim = {"learning_rate": 3e-3, "warmup_steps": 20, "weight_decay": 0.01}
    c.train = {"steps": 40, "log_every": 1, "checkpoint_every": 10}
    c.eval = {"keep_rates": (0.5, 0.25, 0.1), "examples": 200, "batch_size": 8}
    return c
