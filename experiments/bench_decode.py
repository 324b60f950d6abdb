"""Reading and decoding: the whole context against a pruned cache, beside transformers and llama.cpp, and the floors.

    python -m experiments.bench_decode --python=/tmp/beside/bin/python [--llama-python=P] [--dtypes=float32,bfloat16]
        [--contexts=1504,4096 --batches=1,8 --prefill-only=376 --keep-rates=.5,.25,.125 --policy=snapkv --new=32]
        [--repeats=5 --seconds=60] [--output=DIR]

One run, the same weights and token ids on every side. The parts of all sides are run in turn, compilation excluded;
numbers are medians over the repeats. A setting is repeated until it has taken `--seconds`, or `--repeats` times.
Floors: a decoded token has to read every weight and every cache entry once, at the bandwidth measured in the same run;
a prompt needs its products (of attention the causal half), at the measured rate of large products. `--python` is an
environment with torch and transformers (see experiments/beside_transformers.py); without it ours runs alone.
`--output` gets bench_decode.json, .md and .png; settings of an earlier run that are not measured again stay.
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
from experiments.decode_runs import Ours, Weights
from experiments.machine import measured
from experiments.prompts import long_prompts
from rcp.eviction import POLICIES
from rcp.pretrained import Pretrained, load
from rcp.pretrained.load import locate
from rcp.train.parallel import use_compile_cache
from rcp.types import UserError

EXTRA = 96  # tokens that prompts are made longer by before they are cut to one length


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
        if time.perf_counter() - start > arguments.seconds:
            break
    return {"seconds": seconds, "same tokens": same}


def numbers(kind: type) -> Any:
    return lambda text: tuple(kind(x) for x in text.split(",") if x)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment with torch and transformers")
    parser.add_argument("--llama-python", help="of an environment with llama_cpp")
    parser.add_argument("--contexts", type=numbers(int), default=(1504, 4096))
    parser.add_argument(
        "--prefill-only", type=numbers(int), default=(376,), help="contexts that are not pruned, batch 1"
    )
    parser.add_argument("--batches", type=numbers(int), default=(1, 8))
    parser.add_argument("--keep-rates", type=numbers(float), default=(0.5, 0.25, 0.125))
    parser.add_argument("--dtypes", type=numbers(str), default=("float32", "bfloat16"))
    parser.add_argument("--policy", choices=sorted(POLICIES), default="snapkv")
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


def write(folder: Path, report: dict[str, Any]) -> str:
    """The files of a report, with the settings of an earlier one that it lacks; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench_decode.json"
    if path.exists():
        key = lambda cell: (cell["dtype"], cell["tokens"], cell["batch"])  # noqa: E731
        mine = {key(cell) for cell in report["cells"]}
        earlier = json.loads(path.read_text(encoding="utf-8"))["cells"]
        report["cells"] = [cell for cell in earlier if key(cell) not in mine] + report["cells"]
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    (folder / "bench_decode.md").write_text(text, encoding="utf-8")
    figure(folder / "bench_decode.png", report)
    return text


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    use_compile_cache()
    try:
        machine = measured()
        pretrained = load(arguments.model, dtype="float32")
        others, cells = others_of(arguments, pretrained), []
        sides = {other.name: other.versions for other in others}
        settings = [(n, 1, ()) for n in arguments.prefill_only]
        settings += [(n, b, arguments.keep_rates) for n in arguments.contexts for b in arguments.batches]
        for dtype in arguments.dtypes:
            weights = Weights(pretrained.model if dtype == "float32" else load(arguments.model, dtype=dtype).model)
            for tokens, batch, rates in settings:
                ids = prompts(pretrained, batch, tokens)
                policy = POLICIES[arguments.policy]()
                ours = Ours(weights, ids, policy=policy, rates=rates, new=arguments.new)
                asked = [o for o in others if o.name == "transformers" or (batch == 1 and dtype == "float32")]
                cell = measure(ours, asked, ids, dtype, arguments)
                cells.append({"dtype": dtype, "tokens": tokens, "batch": batch, "machine": vars(machine), **cell})
                print(f"{dtype}, {tokens} tokens, batch {batch}: measured", file=sys.stderr, flush=True)
        for other in others:
            other.close()
    except UserError as error:
        print(f"bench_decode: {error}", file=sys.stderr)
        return 2
    shape = pretrained.model.config
    report = {"policy": arguments.policy, "new": arguments.new, "jax": jax.__version__, "others": sides}
    report |= {"shape": {k: v for k, v in vars(shape).items() if isinstance(v, int | float)}, "cells": cells}
    print(write(arguments.output, report) if arguments.output else markdown(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
