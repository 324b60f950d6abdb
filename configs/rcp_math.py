"""Which of sixteen worked examples to show SmolLM2-135M before a GSM8K problem, at 256 or 512 tokens.

    rcp train --config=configs/rcp_math.py --workdir=runs/rcp_math && rcp eval --workdir=runs/rcp_math

Candidates are drawn from GSM8K and MRD3 together. Every second training problem is answered by its equations alone, as
SVAMP and AddSub are, which the pruner serves too. First every candidate of 400 training problems is judged by how much
it helps the gold solution when it stands alone, once (`train.prepare`). A warm start learns these labels; then draws at
both budgets are rewarded for the likelihood of the solution, beside the labels. The scorer sees the question, is told
the budget and how the answer is to be written (`scorer.groups`), so one run serves every budget and both forms, and
sees each example by itself, so that an example is read once for all prompts. Whole examples are chosen, not tokens of
them, which harm a reader this small, whoever chooses (the ablations `token`, `two_stage`). The example that crosses the
budget loses its beginning, for every method.
Expect 1.188 nats a token on GSM8K at 256 tokens (random shots 1.215, retrieval 1.205), 1.175 at 512 (1.200, 1.193), at
256 tokens .818 on SVAMP (.864, .861) and .608 on AddSub (.644, .649); an hour to train on one core. The run of
experiments/results/rcp_math.md comes exported in experiments/results/trained/rcp_math.
Variants: `configs/rcp_math.py:rl` (reinforcement alone), `:supervised` (labels alone, which reaches the same: the
draws add nothing measurable, nor does the question: without it 3 of 160 prompts differ), default both. Needs the files
of GSM8K and MRD3 (`rcp doctor` says where they are looked for).
"""

from ml_collections import ConfigDict

VARIANTS = ("both", "rl", "supervised")


def get_config(variant: str = "both") -> ConfigDict:
    c = ConfigDict()
    c.task = {
        "name": "gsm8k",
        "shots": 16,
        "pool": "gsm8k+mrd3",
        "pool_size": 1000,
        "max_words": 80,
        "equations": 0.5,
        "validation_size": 500,
    }
    c.data = {
        "batch_size": 8,
        "lengths": (2048, 2304),
        "max_segments": 16,
        "max_answer": 384,
        "train_examples": 400,
    }
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}
    c.scorer = {"kind": "linear", "apart": True, "layer": 4, "budget": True, "groups": 2}
    c.budget = {"granularity": "segment", "keep_rates": (), "keep_tokens": (256, 512), "cut": "beginning"}
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
    c.eval = {"keep_rates": (), "examples": 320, "batch_size": 8}
    return c
