"""Eviction policies on RULER-style tasks: what is answered from 75, 50, 25 and 10 % of a context's key-value cache.

    rcp tables kv_policies --tokens=512,1024 --examples=100 [--question] [--runs=runs]

A context is read once, without a question in sight, pruned by every policy at every rate, and asked (query-agnostic).
With --question the policies see the question too (query-aware). The tasks are those of `configs/ruler.py`; the dataset
"text" is perplexity of windows of --text. Exact match is teacher-forced unless --decode says otherwise. Every row but
"shorter" and "none", which read a prompt of their own, keeps the first --sinks entries of every head; a row
"POLICY+ALLOTMENT" shares the budget out in another way than the policy's authors, "POLICY+repacked" counts positions
anew, "POLICY+recent" keeps the newest 32 entries of every head too. "ours" and "ours_text" are the runs `eviction` and
`eviction_text` under --runs. Tasks that the whole cache answers in fewer than half of the cases are shown, and nothing
is claimed on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from experiments.grid import CacheSetting, Method, Table, chosen, integers, listed, parser_of
from experiments.ruler import DATASETS, OWN, config_of
from experiments.tables import run_table
from rcp.types import UserError

NAME = "kv_policies"
RUN, CONFIG = "eviction", "configs/eviction.py"
RATES = (0.75, 0.5, 0.25, 0.1)


def ours(name: str, about: str) -> Method:
    return Method(name, name, RUN, CONFIG, about=about)


METHODS = (
    Method("full", "full", about="the whole cache, whatever the budget"),
    Method("none", "none", about="the question alone"),
    Method("shorter", "shorter", about="the last tokens of the context, as many as the budget has, read as a prompt"),
    Method("random", "random"),
    Method("sinks_window", "sinks_window", about="the first 4 tokens and the newest (StreamingLLM)"),
    Method("h2o", "h2o"),
    Method("tova", "tova"),
    Method("snapkv", "snapkv"),
    Method("snapkv+ada", "snapkv+ada", about="Ada-KV: the heads of a layer compete"),
    Method("pyramidkv", "pyramidkv", about="more for the first layers"),
    Method("expected_attention", "expected_attention"),
    Method("expected_attention+ada", "expected_attention+ada", about="Ada-KV: the heads of a layer compete"),
    Method("keydiff", "keydiff"),
    Method("kvzip", "kvzip", about="reads the context twice; heads and layers compete"),
    Method("kvzip+uniform", "kvzip+uniform", about="the same, every head keeps as many"),
    Method("kvzip+repacked", "kvzip+repacked", about="what is kept stands at positions without gaps"),
    Method("kvzip+recent", "kvzip+recent", about="the newest 32 entries of every head are kept too, within the budget"),
    Method("oracle", "oracle", about="what the answer needs first, then the newest; knows task and question"),
    ours("ours", f"trained by {CONFIG}; what it was trained to share out is: by default heads and layers compete"),
    ours("ours+ada", "the same scores, the heads of a layer compete"),
    ours("ours+uniform", "the same scores, every head keeps as many"),
    ours("ours+repacked", "what is kept stands at positions without gaps"),
    ours("ours+recent", "the newest 32 entries of every head are kept too, within the budget"),
    Method("ours_text", "ours_text", f"{RUN}_text", f"{CONFIG}:text", about=f"trained by {CONFIG}:text, on text too"),
)


def setting_of(options: argparse.Namespace, reader: str, task: str, tokens: int) -> CacheSetting:
    config = config_of(task, tokens, options.text, reader)
    aware = "_aware" if options.question else ""
    return CacheSetting(
        name=f"kv_{task}_{tokens}{aware}",
        title=f"{task}, {tokens} tokens{', the question seen' if aware else ''}",
        task={"name": config.task.name, **config.task.fields},
        reader=config.model.name,
        max_segments=config.data.max_segments,
        max_answer=config.data.max_answer,
        examples=options.examples,
        keep_tokens=options.keep_tokens,
        keep_rates=options.keep_rates or (() if options.keep_tokens else RATES),
        batch_size=options.batch_size,
        decode=options.decode,
        exact=task != "text",
        dtype=options.dtype,
        at=tokens,
        benchmark="" if task == "text" else "ruler",
        aware=options.question,
        split=options.split,
        first=options.first,
        questions=options.questions,
        sinks=options.sinks,
    )


def main(argv: Sequence[str]) -> int:
    """Measures, writes and prints the table."""
    from experiments.kv_measure import measure_caches
    from experiments.kv_report import costs, judged, verdicts

    unset = {"keep_rates": f"{listed(RATES)}; none with --keep-tokens"}
    parser = parser_of(
        NAME, __doc__, without=OWN, unset=unset, datasets=DATASETS, keep_tokens=(), examples=100, batch_size=4
    )
    add, default = parser.add_argument, " (default: %(default)s)"
    add("--tokens", type=integers, default="512,1024,2048,4096", help="lengths of prompts" + default)
    add("--question", action="store_true", help="policies see the question")
    add("--questions", type=int, default=1, help="questions a context, where the task can ask several" + default)
    add("--sinks", type=int, default=4, help="first entries that every head keeps, of its budget" + default)
    add("--text", default="", help='a text file, or a folder of *.txt files, for the dataset "text"')
    options = parser.parse_args(argv)
    if "text" in options.datasets and not options.text:
        raise UserError('--datasets: "text" needs --text=FILE, a text file or a folder of *.txt files')
    if options.questions < 1 or options.sinks < 0 or (options.question and options.questions > 1):
        raise UserError(
            f"--questions={options.questions} --sinks={options.sinks}: expected at least 1 question and 0 sinks, and "
            "with --question, where each question needs a reading of its own, 1 question"
        )
    seen = "sees the question" if options.question else "does not see the question"
    table = Table(
        title="Eviction policies: answers from a pruned KV cache",
        about=f"A context of a given length is read, its cache is pruned by a policy that {seen}, and the question is "
        "answered from what was kept. A budget is a share of the cache's entries; all rows get the same prompts.",
        settings=tuple(
            setting_of(options, reader, task, tokens)
            for reader in options.readers
            for tokens in options.tokens
            for task in options.datasets
        ),
        methods=chosen(METHODS, options.methods),
        x_label="cache entries kept, all layers and heads",
        costs=False,
    )

    def also(parts: Sequence[Any]) -> str:
        return verdicts(table, parts, options.bootstrap) + costs(table, parts)

    return run_table(NAME, table, options, also, measure_caches, judged)
