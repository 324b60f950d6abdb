"""What a reader can do of the RULER-style tasks: exact match from the whole prompt, from what is needed, from nothing.

    python -m experiments.ruler_reader --tokens=512,1024 --questions=16 --seeds=1,2 [--output=runs/ruler_reader]

A row a task of `configs/ruler.py` and length. "Needed" keeps the segments that the task says are needed, and nothing
else: the most that a pruner of segments can hope for. The questions are of the training split of seeds that no config
has: difficulties may be chosen by this table, and results reported on the others. Exact match is teacher-forced: every
token of the gold answer is the likeliest one, as in greedy decoding. Each task, length and seed that is measured goes
into OUTPUT/cells.jsonl and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cell_lines import Cell, CellLines
from experiments.grid import integers, words
from experiments.reasoning_families import reader_of
from experiments.ruler import DATASETS, config_of
from rcp.config import Config
from rcp.config_file import from_dict, to_dict
from rcp.evaluate.results import real_rows
from rcp.evaluate.subject import Subject, of_reader
from rcp.pretrained import Pretrained, load
from rcp.train.parallel import use_compile_cache
from rcp.types import Batch, Role, UserError

SHORT = (48, 64, 96, 128, 192, 256, 384)
"""Static lengths of prompts without most of their context."""
Read = Callable[[Batch, np.ndarray], tuple[np.ndarray, np.ndarray]]


def masks_of(batch: Batch) -> dict[str, np.ndarray]:
    """What is kept, bool [batch, tokens]; no "needed" where the task does not know it."""
    rest = batch.role != Role.CONTEXT
    kept = {"full": np.ones_like(rest), "none": rest}
    if (batch.support == 1).any():
        place = np.maximum(batch.segment, 0)
        kept["needed"] = rest | (np.take_along_axis(batch.support, place, axis=1) == 1)
    return kept


def measure(batches: Sequence[Batch], read: Read) -> Cell:
    """Means over the questions: exact match and NLL (nats an answer token) of each mask, and the tokens of a prompt."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in batches:
        for name, keep in masks_of(batch).items():
            found.setdefault(name, []).append(read(batch, keep))
    lengths = [np.sum(batch.role != Role.PAD, axis=1) for batch in batches]
    cell: Cell = {"prompt": float(np.mean(real_rows(batches, lengths))), "n": int(sum(b.weight.sum() for b in batches))}
    for part, name in enumerate(("exact", "nll")):
        cell[name] = {
            mask: float(np.mean(real_rows(batches, [pair[part] for pair in pairs]))) for mask, pairs in found.items()
        }
    return cell


def configs_of(options: argparse.Namespace) -> Iterator[tuple[str, int, int, Config]]:
    """(task, tokens, seed, config); the shapes of all tasks of a length are the same, so that it is compiled once."""
    for tokens in options.tokens:
        for task in options.datasets:
            base = config_of(task, tokens, options.text, options.model)
            for seed in options.seeds:
                values = to_dict(base)
                values["task"] |= {"seed": seed, **options.set.get(task, {})}
                values["data"] |= {"max_segments": tokens // 2, "max_answer": 64}
                values["model"]["dtype"] = options.dtype
                values["eval"] |= {"split": "train", "examples": options.questions, "batch_size": options.batch_size}
                yield task, tokens, seed, from_dict(values)


def run(options: argparse.Namespace, kept: Path) -> list[Cell]:
    """The cells asked for, those from the file `kept` first; new ones are added to it."""
    lines = CellLines(kept)
    ends = time.monotonic() + 60 * (options.budget_minutes if options.budget_minutes is not None else 1e9)
    model: Pretrained | None = None
    readers: dict[int, Read] = {}
    cells = []
    for task, tokens, seed, config in configs_of(options):
        identity = {"task": to_dict(config)["task"], "model": config.model.name, "dtype": options.dtype}
        identity |= {"questions": options.questions}
        cell = next((cell for cell in lines.cells if cell["identity"] == identity), None)
        if cell is None and time.monotonic() < ends:
            model = model or load(config.model.name, dtype=options.dtype)
            subject: Subject = of_reader(config, model)
            lengths = [*(length for length in SHORT if length < tokens), tokens]
            readers.setdefault(tokens, reader_of(subject, lengths))
            began = time.monotonic()
            found = measure(subject.examples()[0], readers[tokens])
            lines.add(identity, {"name": task, "tokens": tokens, "seed": seed, **found})
            cell = lines.cells[-1]
            numbers = ", ".join(f"{name} {value:.2f}" for name, value in cell["exact"].items())
            took = time.monotonic() - began
            print(f"{task} {tokens} seed {seed}: {numbers} ({took:.0f} s)", file=sys.stderr, flush=True)
        cells += [cell] if cell is not None else []
    return cells


def table(cells: Sequence[Cell]) -> str:
    """The Markdown table: means over the seeds, and the least and greatest of full."""
    header = ["task", "tokens", "prompt", "n", "full (least to greatest of the seeds)", "needed", "none"]
    lines = [[*header, "answer NLL, full / needed"]]
    for name, tokens in dict.fromkeys((cell["name"], cell["tokens"]) for cell in cells):
        own = [cell for cell in cells if (cell["name"], cell["tokens"]) == (name, tokens)]
        full = [cell["exact"]["full"] for cell in own]
        row = [name, str(tokens), f"{np.mean([cell['prompt'] for cell in own]):.0f}", str(sum(c["n"] for c in own))]
        row += [f"{np.mean(full):.2f}" + (f" ({min(full):.2f} to {max(full):.2f})" if len(own) > 1 else "")]
        row += [_mean(own, "exact", "needed"), _mean(own, "exact", "none")]
        lines.append([*row, f"{_mean(own, 'nll', 'full')} / {_mean(own, 'nll', 'needed')}"])
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]]) + "\n"


def _mean(cells: Sequence[Cell], metric: str, mask: str) -> str:
    values = [cell[metric][mask] for cell in cells if mask in cell[metric]]
    return f"{np.mean(values):.2f}" if values else "-"


def _json(text: str) -> dict[str, dict[str, Any]]:
    """Of --set: a section a task."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected JSON: {error.msg}") from None
    if not isinstance(value, dict) or not all(isinstance(fields, dict) for fields in value.values()):
        raise argparse.ArgumentTypeError('expected fields a task, such as {"multikey": {"keys": 8}}')
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and writes it beside the cells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--datasets", type=words, default=DATASETS, help="tasks of configs/ruler.py (default: all but text)")
    add("--tokens", type=integers, default=(512, 1024, 2048, 4096), help="(default: 512,1024,2048,4096)")
    add("--seeds", type=integers, default=(1, 2, 3), help="of the task (default: 1,2,3)")
    add("--questions", type=int, default=32, help="a task, length and seed (default: %(default)s)")
    add("--set", type=_json, default={}, help='other fields of tasks, as JSON: {"multikey": {"keys": 8}}')
    add("--text", default="", help='a text file, or a folder of *.txt files, for the dataset "text"')
    add("--model", default="smollm2-135m-instruct", help="(default: %(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: %(default)s)")
    add("--batch-size", type=int, default=4, help="prompts at a time (default: %(default)s)")
    add("--budget-minutes", type=float, help="begin nothing new after so long")
    add("--output", type=Path, default=Path("runs/ruler_reader"), help="(default: %(default)s)")
    options = parser.parse_args(argv)
    use_compile_cache()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        cells = run(options, options.output / "cells.jsonl")
    except UserError as error:
        print(f"ruler_reader: {error}", file=sys.stderr)
        return 2
    text = table(cells)
    print(text, end="")
    (options.output / "ruler_reader.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
