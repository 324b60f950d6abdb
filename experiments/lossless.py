"""Lossless decoding: is the output that of greedy decoding, how many drafts are accepted, and what does it cost?

    python -m experiments.lossless [--keep=0.125,0.25,0.5 --gammas=4,8 --batch=10 --dtype=bfloat16]
    python -m experiments.lossless --batch=1 --prompts=10      # the same tables hold both

Prompts are those of `SETS`: RULER-style tasks of configs/ruler.py and GSM8K worked examples (facts, and called so,
where its files are not found), a question behind each; contexts are pruned before the question is read. A batch is read
once; then greedy decoding behind the whole context and the settings run in turn on it, compiled before. What is
measured goes into OUTPUT/cells.jsonl, a line a batch and setting, and is not measured again; --minutes=0 only draws.
Where an output differs from greedy decoding, `margin` is how far apart the logits of the two tokens are at the first
place that differs, by a third program that reads all up to there at once: below 0 it sides with the lossless output.
Seconds are of decoding, the question's reading included, for a whole batch; "cpu" those of all cores together.
"pruning" is timed apart and in neither.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.cell_lines import Cell, CellLines
from experiments.grid import integers, numbers, words
from experiments.lossless_report import write_report
from experiments.prompts import GSM8K, long_prompts, source_of
from experiments.ruler import config_of
from rcp.data.pack import encode
from rcp.data.tasks.base import examples_of
from rcp.evaluate.subject import described, digest_of
from rcp.eviction import POLICIES, all_needs
from rcp.eviction.prompt import Eviction, ReadPrompt
from rcp.infer import programs
from rcp.infer.context import ContextModel
from rcp.infer.generate import prefill_behind
from rcp.infer.trained_eviction import load_eviction
from rcp.infer.weights import ModelWeights
from rcp.nn.cache import as_context, for_rows
from rcp.pretrained import Pretrained, load
from rcp.train.build import make_task
from rcp.train.parallel import use_compile_cache
from rcp.types import Example, Tokenizer, UserError

SETS = (
    ("multikey", 512, 0.2),
    ("documents", 512, 0.2),
    ("gsm8k", 512, 0.3),
    ("multikey", 1504, 0.1),
    ("documents", 1504, 0.1),
    ("gsm8k", 1504, 0.1),
)
"""Task, tokens of a prompt, share of the prompts."""
INT8 = "+int8"
Prompt = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Setting:
    """What drafts: `policy` names one of `POLICIES`, or the trained run, and `INT8` behind it."""

    policy: str
    keep: float
    gamma: int


@dataclass(frozen=True)
class Prompts:
    """Prompts of one task and length that are read together: context and question of each."""

    task: str
    tokens: int
    number: int
    rows: tuple[Prompt, ...]


def prompts_of(tokenizer: Tokenizer, count: int, rows: int) -> Iterator[Prompts]:
    """`count` prompts in batches, from all tasks in turn, so that the first few stand for all.

    Prompts of facts, where GSM8K's files are not found, are not called after it.
    """
    parts: list[list[Prompts]] = []
    for task, tokens, share in SETS:
        wanted = max(1, round(share * count))
        name = source_of(wanted, tokens) if task == GSM8K else task
        found = [_ids(example, tokenizer) for example in _examples(task, tokens, tokenizer, wanted)]
        starts = range(0, wanted, rows)
        parts.append([Prompts(name, tokens, n, tuple(found[at : at + rows])) for n, at in enumerate(starts)])
    for number in range(max(map(len, parts))):
        yield from (part[number] for part in parts if number < len(part))


def _examples(task: str, tokens: int, tokenizer: Tokenizer, count: int) -> Sequence[Example]:
    if task == GSM8K:
        return long_prompts(tokenizer, count, tokens)
    return examples_of(make_task(config_of(task, tokens)), tokenizer, "validation", count)


def _ids(example: Example, tokenizer: Tokenizer) -> Prompt:
    encoded = encode(example, tokenizer)
    return np.concatenate([encoded.instruction, *encoded.context]).tolist(), encoded.question.tolist()


def readers_of(loaded: Pretrained, options: argparse.Namespace) -> dict[str, ContextModel]:
    """A model a policy, and another whose weights are in 8 bits to draft; what one of them reads serves all."""
    evictions = {name: Eviction(POLICIES[name](), sinks=4) for name in options.policies}
    if options.run:
        if options.run.name in POLICIES:
            raise UserError(f"--run={options.run}: {options.run.name} is a policy too; rename the folder")
        evictions[options.run.name] = load_eviction(options.run, loaded)
    needs = all_needs(*(eviction.policy.needs for eviction in evictions.values()))
    eos_ids, pad_id = (loaded.tokenizer.eos_id,), loaded.tokenizer.pad_id
    weights = ModelWeights(loaded.model)
    make = partial(ContextModel, loaded.model, needs=needs, eos_ids=eos_ids, pad_id=pad_id, weights=weights)
    drafts = (False, True) if options.int8_drafts else (False,)
    return {
        name + INT8 * int8: make(eviction, int8_weights=int8) for int8 in drafts for name, eviction in evictions.items()
    }


def _compiled() -> int:
    functions = (programs.answer, programs.lossless)
    return sum(f._cache_size() for f in functions)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it returns and its seconds, without those of compiling: what compiles something runs again."""
    while True:
        before = _compiled()
        start, cpu = time.perf_counter(), time.process_time()
        found = run()
        seconds = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        if _compiled() == before:
            return found, seconds


@partial(jax.jit, static_argnames="graph")
def _last_logits(graph: Any, params: Any, cache: Any, tokens: Any, valid: Any) -> Any:
    context = for_rows(as_context(cache), len(tokens))
    return prefill_behind(nnx.merge(graph, params), context, tokens, valid=valid, room=0)[0]


def margins(model: Any, read: ReadPrompt, questions: Sequence[list[int]], ids: Any, expected: Any) -> list[float]:
    """Of each example whose output differs: the logits' distance of the two tokens at the first place that differs."""
    places = [next((n for n, (a, b) in enumerate(zip(*pair)) if a != b), None) for pair in zip(ids, expected)]
    if not any(place is not None for place in places):
        return []
    width = max(len(question) + len(row) for question, row in zip(questions, expected))
    tokens, valid = np.zeros((len(questions), width), np.int32), np.zeros((len(questions), width), bool)
    for i, place in enumerate(places):
        row = [*questions[i], *expected[i][: place or 0]]
        tokens[i, : len(row)], valid[i, : len(row)] = row, True
    logits = np.asarray(_last_logits(*nnx.split(model), read.cache, tokens, valid))
    return [float(logits[i, expected[i][n]] - logits[i, ids[i][n]]) for i, n in enumerate(places) if n is not None]


def measure(
    model: Any, readers: dict[str, ContextModel], batch: Prompts, settings: Sequence[Setting], new: int
) -> Iterator[Cell]:
    """One cell a setting."""
    contexts, questions = ([row[part] for row in batch.rows] for part in range(2))
    first = next(iter(readers.values()))
    read = jax.block_until_ready(first.read(contexts))
    whole = as_context(read.cache)
    expected, greedy = [], {}
    for setting in settings:
        reader = readers[setting.policy]
        reader.prune(read, keep_rate=setting.keep)  # compiles
        start = time.perf_counter()
        pruned = jax.block_until_ready(reader.prune(read, keep_rate=setting.keep))
        pruning = time.perf_counter() - start
        if setting.gamma == settings[0].gamma:  # once for all gammas
            expected, greedy = timed(partial(first.answer, whole, questions, max_new=new))
        run = partial(reader.answer_lossless, read, pruned, questions, gamma=setting.gamma, max_new=new)
        found, lossless = timed(run)
        yield {
            "context": [len(context) for context in contexts],
            "kept": int(pruned.kept.sum()),
            "entries": int(pruned.entries.sum()),
            "new": [len(row) for row in found.ids],
            "identical": [a == b for a, b in zip(found.ids, expected)],
            "margin": margins(model, read, questions, found.ids, expected),
            **{name: getattr(found, name).tolist() for name in ("drafted", "accepted", "blocks")},
            "seconds": {"greedy": greedy, "lossless": lossless, "pruning": pruning},
        }


def run(options: argparse.Namespace, kept: Path) -> list[Cell]:
    """All cells there are, the missing ones of what was asked for added to the file `kept`."""
    lines = CellLines(kept)
    if options.minutes == 0:
        return lines.cells
    ends = time.monotonic() + 60 * options.minutes
    loaded = load(options.model, dtype=options.dtype)
    readers = readers_of(loaded, options)
    settings = [Setting(*x) for x in ((p, k, g) for p in readers for k in options.keep for g in options.gammas)]
    shared = {"model": loaded.fingerprint, "dtype": options.dtype, "max_new": options.new, "batch": options.batch}
    for batch in prompts_of(loaded.tokenizer, options.prompts, options.batch):
        of_batch = {"task": batch.task, "tokens": batch.tokens, "number": batch.number, "rows": len(batch.rows)}
        base = shared | of_batch | {"text": digest_of(batch.rows)}
        identity = {s: base | asdict(s) | {"eviction": described(readers[s.policy].eviction)} for s in settings}
        missing = [setting for setting in settings if identity[setting] not in lines]
        if not missing:
            continue
        if time.monotonic() >= ends:
            break
        for setting, cell in zip(missing, measure(loaded.model, readers, batch, missing, options.new)):
            lines.add(identity[setting], cell)
            print(json.dumps(lines.cells[-1]), file=sys.stderr, flush=True)
    return lines.cells


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing and writes the tables and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--policies", type=words, default=("snapkv", "expected_attention"), help="(default: both of them)")
    add("--run", type=Path, help="folder of a trained eviction scorer: one more policy")
    add("--int8-drafts", action="store_true", help=f"every policy drafts by weights in 8 bits too, POLICY{INT8}")
    add("--keep", type=numbers, default=(0.125, 0.25, 0.5), help="shares kept (default: 0.125,0.25,0.5)")
    add("--gammas", type=integers, default=(4, 8), help="tokens drafted a block (default: 4,8)")
    add("--prompts", type=int, default=100, help="(default: %(default)s)")
    add("--batch", type=int, default=10, help="prompts decoded together (default: %(default)s)")
    add("--new", type=int, default=64, help="most tokens decoded (default: %(default)s)")
    add("--model", default="smollm2-135m-instruct", help="(default: %(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: %(default)s)")
    add("--minutes", type=float, default=1e9, help="begin no batch after so long; 0: only draw")
    add("--output", type=Path, default=Path("runs/lossless"), help="(default: %(default)s)")
    options = parser.parse_args(argv)
    use_compile_cache()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        known = {name for name, policy in POLICIES.items() if not (policy.draws or policy().needs.reconstruction)}
        if unknown := set(options.policies) - known:
            raise UserError(f"--policies: {', '.join(sorted(unknown))}; expected some of {', '.join(sorted(known))}")
        cells = run(options, options.output / "cells.jsonl")
    except UserError as error:
        print(f"lossless: {error}", file=sys.stderr)
        return 2
    print(write_report(cells, options.output), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
