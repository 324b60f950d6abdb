"""RULER-style tasks (arXiv 2404.06654): what a reader answers from the whole context, and from a part of it.

    rcp tables ruler --datasets=single,multikey,documents --tokens=512,1024 --examples=200

The tasks are the variants of `configs/ruler.py`, texts of our own making, at any length up to the reader's. Nothing
here is trained. Exact match is teacher-forced unless --decode says otherwise. The oracle keeps what the task says is
needed first. The dataset "text" is perplexity: its answer NLL is that of the continuations of windows of --text, which
lie side by side from its beginning to its end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.grid import Method, Setting, Table, chosen, integers, parser_of
from experiments.tables import run_table
from rcp.config import Config
from rcp.config_file import load_config
from rcp.types import UserError

NAME = "ruler"
FILE = Path(__file__).resolve().parent.parent / "configs" / "ruler.py"
DATASETS = ("single", "multikey", "multivalue", "multiquery", "passkey", "tracking", "words", "documents")
OWN = ("shots", "max_answer")
"""Flags of other tables: what these are here, the config of a task says."""
METHODS = (
    Method("none", "none", about="the question alone"),
    Method("full", "full", about="the whole context, whatever the budget"),
    Method("shorter", "shorter", about="uncompressed: the first segments that fit the budget whole"),
    Method("random", "random"),
    Method("first", "first"),
    Method("last", "last"),
    Method("bm25", "bm25"),
    Method("embedding", "embedding"),
    Method("perplexity", "perplexity"),
    Method("oracle", "oracle", about="what the answer needs first; knows the task"),
)


def config_of(task: str, tokens: int, text: str = "", model: str = "") -> Config:
    """The config of a task at a length: the file's variant, with every length that hangs on `tokens`.

    Raises:
      UserError: no such task.
    """
    base = load_config(f"{FILE}:{task}")
    share = base.data.lengths[0] // base.data.max_segments
    changes = {
        "task.tokens": tokens,
        "data.lengths": (tokens,),
        "data.max_segments": max(1, tokens // share),
        **({"task.times": tokens // 8} if task == "words" else {}),
        **{f"task.{key}": text for key in base.task.fields if key.endswith("path")},  # every split is all of the text
        **({"model.name": model} if model else {}),
    }
    return load_config(f"{FILE}:{task}", [f"--config.{key}={value}" for key, value in changes.items()])


def setting_of(options: argparse.Namespace, reader: str, task: str, tokens: int) -> Setting:
    config = config_of(task, tokens, options.text, reader)
    return Setting(
        name=f"{NAME}_{task}_{tokens}",
        title=f"{task}, {tokens} tokens",
        task={"name": config.task.name, **config.task.fields},
        reader=config.model.name,
        max_segments=config.data.max_segments,
        max_answer=config.data.max_answer,
        examples=options.examples,
        keep_tokens=options.keep_tokens,
        keep_rates=options.keep_rates or (() if options.keep_tokens else config.eval.keep_rates),
        batch_size=options.batch_size,
        decode=options.decode,
        exact=task != "text",
        dtype=options.dtype,
        at=tokens,
        split=options.split,
        first=options.first,
    )


def main(argv: Sequence[str]) -> int:
    """Measures, writes and prints the table."""
    unset = {"keep_rates": "those of configs/ruler.py; none with --keep-tokens"}
    parser = parser_of(NAME, __doc__, without=OWN, unset=unset, datasets=DATASETS, keep_tokens=(), examples=100)
    parser.add_argument("--tokens", type=integers, default="512,1024", help="lengths of prompts (default: %(default)s)")
    parser.add_argument("--text", default="", help='a text file, or a folder of *.txt files, for the dataset "text"')
    options = parser.parse_args(argv)
    if "text" in options.datasets and not options.text:
        raise UserError('--datasets: "text" needs --text=FILE, a text file or a folder of *.txt files')
    table = Table(
        title="RULER-style tasks",
        about="Generated prompts of a given length; a budget is a share of their context's tokens.",
        settings=tuple(
            setting_of(options, reader, task, tokens)
            for reader in options.readers
            for task in options.datasets
            for tokens in options.tokens
        ),
        methods=chosen(METHODS, options.methods),
    )
    return run_table(NAME, table, options)
