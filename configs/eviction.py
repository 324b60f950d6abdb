"""Learned eviction for SmolLM2-135M: which entries of its key-value cache to keep (docs/eviction.md).

    rcp train --config=configs/eviction.py --workdir=runs/eviction

A run of it comes exported in experiments/results/trained/eviction; what it reaches: experiments/results/kv_policies.md.
First a scorer learns from traces what questions and answers attend to, then, through the model's answers behind what is
kept, what helps them: a quarter of the cache then answers better than all of it. 40 minutes on one core with AVX-512
bf16, half of it for the second stage.
Variants: `:likelihood` (the default: the second stage's objective is the gold answer's likelihood), `:mix` (the first
stage alone, of a listwise cross-entropy to the attention that was paid and of drawn rankings), `:golden` and `:ranking`
(one of the two), `:distil` and `:task` (mix, then steps with the KL to the full cache, or with drawn subsets rewarded
for the answer's likelihood). Another second stage behind the same first: --prepared=runs/eviction. `:stream` is mix for
text that passes through a cache of fixed size: a network for each key-value head, since heads hold different tokens
there, and worked problems ($RCP_DATA_DIR) among the tasks. `:text`: the default with worked problems among the tasks,
for contexts that are read on without a question about them. `:lora` and `:stream_answers` train low-rank updates of the
model beside the scorer, on 512 tokens that every step of the second stage reads anew: the first at once, with the
default's networks, the second through a cache of 128 entries a head, 128 tokens at a time, with those of `:stream`
(draws, which tell the scorer what earlier evictions were worth, with --config.eviction.answer_objectives.task=0.01).
Needles, variables, words and documents of 512, 1,024 and 2,048 tokens are read once, 5.6 GB of traces; a step of the
first stage looks at 512 places of each context. `passkey` is left out, so that one task is new to the scorer. Text of
your own joins them with
--config.eviction.tasks.text.name=long_text --config.eviction.tasks.text.tokens=1024
--config.eviction.tasks.text.path=FILE.txt.
"""

from typing import Any

from ml_collections import ConfigDict

LENGTHS = (512, 1024, 2048)
TASKS = {
    "single": {"name": "needle"},
    "multikey": {"name": "needle", "keys": 4},
    "multivalue": {"name": "needle", "values": 2},
    "multiquery": {"name": "needle", "keys": 2, "queries": 2},
    "tracking": {"name": "tracking"},
    "words": {"name": "common_words", "other_times": 1},
    "documents": {"name": "documents"},
}
"""As in configs/ruler.py."""
GOLDEN, RANKING = {"golden": 1.0}, {"ranking": 1.0}
SEED = 17  # of the training texts alone: tables and surveys have theirs of seed 0 and the like
VARIANTS = ("mix", "golden", "ranking", "distil", "likelihood", "task", "stream", "text", "lora", "stream_answers")
STREAMS, TUNED = ("stream", "stream_answers"), ("lora", "stream_answers")
LIKELIHOOD = {
    "answer_objectives": {"likelihood": 4.0} | GOLDEN,
    "answer_steps": 300,
    "answer_learning_rate": 1e-3,
}
ANEW = LIKELIHOOD | {"answer_steps": 120, "reading": "anew"}
STREAM = {"stream_size": 128, "chunk": 128, "samples": 2, "answer_steps": 60, "keep_rates": (0.1, 0.25)}
ANSWERS = {
    "distil": {"answer_objectives": {"distil": 1.0}, "answer_steps": 60},
    "likelihood": LIKELIHOOD,
    "text": LIKELIHOOD,
    "task": {"answer_objectives": {"task": 1.0}, "answer_steps": 60},
    "lora": ANEW,
    "stream_answers": ANEW | STREAM,
}
"""The second stage."""


def at(task: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A task at a length; a common word is an eighth of it."""
    times = {"times": tokens // 8} if task["name"] == "common_words" else {}
    return task | times | {"tokens": tokens, "seed": SEED}


def get_config(variant: str = "likelihood") -> ConfigDict:
    c = ConfigDict()
    tuning = {"train": "lora", "remat": True} if variant in TUNED else {}
    c.model = {"name": "smollm2-135m-instruct", "dtype": "bfloat16"} | tuning
    streams, lengths = variant in STREAMS, LENGTHS[:1] if tuning else LENGTHS
    tasks = TASKS | ({"text": {"name": "solutions"}} if streams or variant == "text" else {})
    c.eviction = {
        "tasks": {f"{name}_{tokens}": at(task, tokens) for tokens in lengths for name, task in tasks.items()},
        "tokens": lengths[-1],
        "entries": 512,
        "heads": "own" if streams else "layer",
        "contexts": 10,
        "objectives": {"golden": GOLDEN, "ranking": RANKING}.get(variant, GOLDEN | RANKING),
    } | ANSWERS.get(variant, {})
    rates = {"learning_rate": 2e-3} | ({"model_learning_rate": 3e-4} if tuning else {})
    c.optim = rates | {"warmup_steps": 20, "weight_decay": 0.01}
    c.train = {"steps": 400, "log_every": 10, "checkpoint_every": 50}
    return c
