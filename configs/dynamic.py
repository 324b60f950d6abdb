"""Dynamic context pruning (arXiv 2305.15805): every token may drop earlier ones from a layer's cache, for good.

    rcp train --config=configs/dynamic.py --workdir=runs/dynamic

What is published, what is ours, and how a run is used: docs/dynamic.md; what it reached:
experiments/results/dynamic_pruning.md.
Text: worked problems of GSM8K's training file and MRD3 ($RCP_DATA_DIR); any other by --config.task.name=long_text,
--config.task.path=FILE.txt and --config.task.tokens=256 (for `scratch` also --config.task.characters=true). Variants:
`smollm2` fine-tunes SmolLM2-135M whole, as published; `lora` (default) trains low-rank updates of it beside the
projections, `frozen` the projections alone; `scratch` is a tiny model of characters.

The published runs took 25,000 steps of 6 to 8 windows of 1,024 tokens, at learning rate 1e-4. These are few and small,
for CPU: so the projections get a learning rate of their own, and alpha reaches its end soon.
"""

from ml_collections import ConfigDict

VARIANTS = ("lora", "smollm2", "frozen", "scratch")


def get_config(variant: str = "lora") -> ConfigDict:
    c = ConfigDict()
    scratch = variant == "scratch"
    c.task = {"name": "solutions", "tokens": 256, "answer_tokens": 64, "characters": scratch}
    c.data = {"batch_size": 8 if scratch else 2, "lengths": (256,), "max_segments": 128, "max_answer": 64}
    if scratch:
        c.dynamic = {"on": True, "rank": 16, "alpha_steps": 500}
        heads = {"n_heads": 3, "n_kv_heads": 1, "head_dim": 32}
        c.model = {"name": "scratch", "d_model": 96, "d_ff": 256, "n_layers": 3, **heads}
        c.optim = {"learning_rate": 3e-3, "model_learning_rate": 3e-3, "warmup_steps": 30}
        c.train = {"steps": 600, "log_every": 5, "checkpoint_every": 50}
        return c
    c.dynamic = {"on": True, "rank": 64, "alpha_steps": 160}
    train = {"smollm2": "full", "lora": "lora", "frozen": "frozen"}[variant]
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16", "train": train, "lora_rank": 16}
    c.optim = {"learning_rate": 3e-3, "model_learning_rate": 5e-4 if variant == "lora" else 1e-4, "warmup_steps": 10}
    c.train = {"steps": 200, "log_every": 1, "checkpoint_every": 20}
    return c
