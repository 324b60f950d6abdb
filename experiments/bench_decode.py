"""Reading and decoding: the whole context against a pruned cache, beside transformers and llama.cpp, and the floors.

    python -m experiments.bench_decode --python=/tmp/beside/bin/python [--llama-python=P] [--dtypes=float32,bfloat16]
        [--contexts=1504,4096 --batches=1,8 --prefill-only=376 --keep-rates=.5,.25,.125 --policy=snapkv --new=32]
        [--repeats=5 --seconds=60] [--output=DIR]

One run, the same weights and token ids on every side. The parts of all sides are run in turn, compilation excluded;
numbers are medians over the repeats. A setting is repeated until it has taken `--seconds`, or `--repeats` times, but
twice at least.
Floors: a decoded token has to read every weight and every cache entry once, at the bandwidth measured in the same run;
a prompt needs its products (of attention the causal half), at the measured rate of large products. Decoding is measured
with weights in 8 bits too (`ContextModel(int8_weights=True)`). `--python` is an environment with torch and transformers
(see experiments/beside_transformers.py); without it ours runs alone.
`--output` gets bench_decode.json, .md and .png; settings of an earlier run that are not measured again stay, so that
both must be runs of the same model, policy and sides.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.beside_transformers import Other, llama_cpp, transformers
from experiments.decode_report import figure, markdown
from experiments.decode_runs import Ours
from experiments.grid import integers, numbers, words
from experiments.json_cell import write_whole
from experiments.machine import measured
from experiments.prompts import long_prompts
from rcp.eviction import POLICIES
from rcp.infer.weights import ModelWeights
from rcp.pretrained import Pretrained, load
from rcp.pretrained.load import locate
from rcp.train.parallel import use_compile_cache
from rcp.types import UserError

TIMED = sorted(name for name, p in POLICIES.items() if not (p.draws or p().needs.reconstruction))
"""Policies that neither draw nor read the prompt twice: `Ours` gives no keys, and knows no second reading."""
FILE = "bench_decode.json"
LEAST = 2  # repeats of a setting, however long they take
EXTRA = 256  # prompts are made so many tokens longer and then cut to one length: their questions are left out


def prompts(pretrained: Pretrained, batch: int, tokens: int) -> np.ndarray:
    """Token ids [batch, tokens]."""
    examples = long_prompts(pretrained.tokenizer, batch, tokens + EXTRA)
    rows = [pretrained.tokenizer.encode("".join(example.context))[:tokens] for example in examples]
    if min(map(len, rows)) < tokens:
        raise UserError(f"prompts of {min(map(len, rows))} tokens: expected {tokens}")
    return np.asarray(rows, np.int32)


def measure(ours: Ours, others: Sequence[Other], ids: np.ndarray, dtype: str, arguments: Any) -> dict[str, Any]:
    """Seconds of every part on every side, and the share of rows in which they decode the same tokens as we do."""
    seconds: dict[str, dict[str, list[float]]] = {}
    same: dict[str, float] = {}
    ours.once()  # compiles
    for other in others:
        other.measure(ids.tolist(), 1, dtype)
    start = time.perf_counter()
    for number in range(arguments.repeats):
        sides = ["ours", *others] if number % 2 else [*others, "ours"]
        found = {}
        for side in sides:
            if isinstance(side, Other):
                found[side.name] = side.measure(ids.tolist(), arguments.new, dtype)
            else:
                found["ours"] = ours.once()
        for name, parts in found.items():
            tokens = parts.pop("tokens", None)
            if tokens is not None:
                same[name] = float(np.mean([a == b for a, b in zip(tokens, ours.decoded, strict=True)]))
            for part, value in parts.items():
                seconds.setdefault(name, {}).setdefault(part, []).append(value)
        if number + 1 >= LEAST and time.perf_counter() - start > arguments.seconds:
            break
    same["ours, int8 weights"] = float(np.mean([a == b for a, b in zip(ours.decoded_rounded, ours.decoded)]))
    return {"seconds": seconds, "same tokens": same}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment with torch and transformers")
    parser.add_argument("--llama-python", help="of an environment with llama_cpp")
    parser.add_argument("--contexts", type=integers, default=(1504, 4096))
    parser.add_argument("--prefill-only", type=integers, default=(376,), help="contexts that are not pruned, batch 1")
    parser.add_argument("--batches", type=integers, default=(1, 8))
    parser.add_argument("--keep-rates", type=numbers, default=(0.5, 0.25, 0.125))
    parser.add_argument("--dtypes", type=words, default=("float32", "bfloat16"))
    parser.add_argument("--policy", choices=TIMED, default="snapkv")
    parser.add_argument("--new", type=int, default=32, help="tokens decoded")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60, help="after so many a setting is not repeated again")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(argv)


def others_of(arguments: argparse.Namespace, pretrained: Pretrained) -> list[Other]:
    """`pretrained` in float32."""
    found = []
    if arguments.python:
        found.append(transformers(arguments.python, pretrained.model, pretrained.tokenizer))
    if arguments.llama_python:
        found.append(llama_cpp(arguments.llama_python, locate(arguments.model)))
    return found


def earlier_cells(folder: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings that a report in the folder holds.

    Raises:
      UserError: it is damaged, or of another model, policy, number of tokens or of other sides.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{path}: not JSON ({error}); remove it, or choose another --output") from error
    if not isinstance(earlier, dict) or not isinstance(earlier.get("cells"), list):
        raise UserError(f"{path}: not a report of this script; remove it, or choose another --output")
    if differs := [name for name in report if name != "cells" and report[name] != earlier.get(name)]:
        raise UserError(f"{path} is of a run of another {' and '.join(differs)}: choose another --output")
    return earlier["cells"]


def with_cell(cells: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells with a new one in place of that of the same setting."""
    key = lambda cell: (cell["dtype"], cell["tokens"], cell["batch"])  # noqa: E731
    return [*(cell for cell in cells if key(cell) != key(new)), new]


def write(folder: Path, report: dict[str, Any]) -> None:
    """The files of a report; what holds the cells is written whole or not at all."""
    write_whole(folder / FILE, report)
    (folder / "bench_decode.md").write_text(markdown(report), encoding="utf-8")
    figure(folder / "bench_decode.png", report)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All settings, one after the other; what is measured is written at once."""
    machine = measured()
    pretrained = load(arguments.model, dtype="float32")
    others = others_of(arguments, pretrained)
    shape = {name: value for name, value in vars(pretrained.model.config).items() if isinstance(value, int | float)}
    report: dict[str, Any] = {"policy": arguments.policy, "new": arguments.new, "jax": jax.__version__, "shape": shape}
    report |= {"others": {other.name: other.versions for other in others}, "cells": []}
    if arguments.output:
        report["cells"] = earlier_cells(arguments.output, report)
    settings = [(n, 1, ()) for n in arguments.prefill_only]
    settings += [(n, b, arguments.keep_rates) for n in arguments.contexts for b in arguments.batches]
    for dtype in arguments.dtypes:
        weights = ModelWeights(pretrained.model if dtype == "float32" else load(arguments.model, dtype=dtype).model)
        for tokens, batch, rates in settings:
            ids = prompts(pretrained, batch, tokens)
            ours = Ours(weights, ids, policy=POLICIES[arguments.policy](), rates=rates, new=arguments.new)
            asked = [o for o in others if o.name == "transformers" or (batch == 1 and dtype == "float32")]
            found = measure(ours, asked, ids, dtype, arguments)
            setting = {"dtype": dtype, "tokens": tokens, "batch": batch, "machine": vars(machine)}
            report["cells"] = with_cell(report["cells"], setting | found)
            print(f"{dtype}, {tokens} tokens, batch {batch}: measured", file=sys.stderr, flush=True)
            if arguments.output:
                write(arguments.output, report)
    for other in others:
        other.close()
    return report


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    use_compile_cache()
    try:
        report = run(arguments)
    except UserError as error:
        print(f"bench_decode: {error}", file=sys.stderr)
        return 2
    print(markdown(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
