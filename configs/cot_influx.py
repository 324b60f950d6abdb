"""CoT-Influx as published (arXiv 2312.08901), in small: shot and token pruner, REINFORCE on its own reward.

    rcp train --config=configs/cot_influx.py --workdir=runs/cot_influx
    rcp eval --workdir=runs/cot_influx --config.task.dataset=gsm8k

Training problems and candidates are MRD3's; six candidates are retrieved for each problem, and one hand-written example
is always kept. Problems of difficulty up to 3, easy ones first. T = 320 tokens of about 700. Evaluation draws the mask,
as published; `--config.eval.draw=likely` keeps what is likelier than not, `--config.eval.draw=budget` the best of its
scores at exactly `budget.keep_tokens`.
What to expect on a reader this small, with sixteen random candidates (experiments/results/rcp_math.md): drawn, it
keeps about 640 tokens, twice its window, reads better than no example and no better than random ones of 512 tokens; at
exactly 256 or 512 it is behind no example. It trained in 38 minutes of one CPU core beside other work.
Variants: `configs/cot_influx.py:published` has the published sizes and Llama-2-7b-hf, for a GPU (not run). What is
published, what is not, and what stands here in its place: docs/cot_influx.md. Needs the files of MRD3, and GSM8K's for
that evaluation (`rcp doctor` says where they are looked for).
"""

from ml_collections import ConfigDict

VARIANTS = ("small", "published")


def get_config(variant: str = "small") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}")
    published = variant == "published"
    c = ConfigDict()
    c.task = {
        "name": "mrd3",
        "pool": "mrd3",
        "candidates": "bm25",
        "shots": 32 if published else 6,
        "append": 8 if published else 1,
        "pool_size": 4000 if published else 2000,
        "max_difficulty": 3,
        "max_words": 0 if published else 70,
        "order": "difficulty",
        "validation_size": 500,
    }
    c.data = {
        "batch_size": 8,
        "lengths": (5120, 6144) if published else (1024, 1280),
        "max_segments": 40 if published else 7,
        "max_answer": 512 if published else 256,
        "train_examples": None if published else 240,
        "phases": 3,
        "repeats": 10 if published else 3,
        "overlong": "drop_segments",
    }
    c.model = {"name": "meta-llama/Llama-2-7b-hf" if published else "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "cot_influx", "layer": 4, "width": 512, "positions": 512 if published else 256}
    c.budget = {"granularity": "independent", "keep_rates": (), "keep_tokens": (2048,) if published else (320,)}
    c.objectives = {"reinforce": 1.0}
    c.policy = {"samples": 1 if published else 2, "baseline": "moving_average", "baseline_decay": 0.8}
    c.reward = {"kind": "cot_influx", "exact_match": 1.0, "likelihood": 1.0, "window": 2048 if published else 320}
    c.optim = {"learning_rate": 3e-4, "warmup_steps": 10}
    c.train = {"steps": 3225 if published else 90, "log_every": 1, "checkpoint_every": 100 if published else 15}
    c.eval = {"draw": "sample", "keep_rates": (), "examples": 128, "batch_size": 8, "decode": 256 if published else 0}
    return c
