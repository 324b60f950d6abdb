"""Compares the decoder with transformers, live: `make parity`, or `python -m experiments.parity` where torch is.

Tiny random checkpoints of each architecture and SmolLM2-135M-Instruct from its GGUF file, in float32: full forward, and
cached greedy decoding against transformers' uncached one. Ends with status 1 if a logit differs by 2e-3 or a greedy
token at all. Two minutes on 2 cores.

Measured with torch 2.13.0+cpu, transformers 5.23.0, jax 0.10.2, largest difference of a logit: tiny checkpoints 2.2e-5,
SmolLM2 1.4e-4; top-1 and greedy continuations the same throughout.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.write_parity_references import CASES, SMOLLM2_IDS, TINY, build_tiny, load_gguf, reference
from rcp.infer.generate import generate
from rcp.nn.transformer import Transformer
from rcp.pretrained import gguf, hf
from rcp.pretrained.load import locate
from rcp.types import UserError

LIMIT = 2e-3  # largest absolute difference of a logit


def ours(model: Transformer, ids: np.ndarray, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and greedy continuation."""
    graph, params = nnx.split(model)

    @jax.jit
    def run(params: Any, tokens: jax.Array):
        merged = nnx.merge(graph, params)
        return merged(tokens), generate(merged, tokens, max_new=new).tokens

    logits, tokens = run(params, jnp.asarray(ids, jnp.int32))
    return np.asarray(logits), np.asarray(tokens)


def compare(name: str, model: Transformer, theirs: Any, ids: np.ndarray, new: int) -> bool:
    """Prints one line; True where both limits hold."""
    expected = reference(theirs, ids, new, rows=None)
    logits, tokens = ours(model, ids, new)
    difference = float(np.abs(logits - expected["logits"]).max())
    top1 = float((logits.argmax(-1) == expected["logits"].argmax(-1)).mean())
    same = bool((tokens == expected["greedy"]).all())
    print(f"{name:24s} {ids.size:6d} {difference:10.2e} {top1:8.3f}   {'same' if same else 'DIFFERS'}", flush=True)
    return difference < LIMIT and same


def main() -> int:
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SystemExit(f"{error}; run `make parity`, which installs torch and transformers") from error
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}")
    print(f"{'model':24s} {'tokens':>6s} {'max diff':>10s} {'top-1':>8s}   greedy")
    generator, good = np.random.default_rng(1), True
    with tempfile.TemporaryDirectory() as scratch:
        for name in CASES:
            folder = Path(scratch) / name
            theirs = build_tiny(name, seed=1)
            theirs.save_pretrained(folder, max_shard_size="20KB" if "sharded" in name else "5GB")
            ids = generator.integers(0, TINY["vocab_size"], (2, 64))
            good &= compare(name, hf.read_model(folder, "float32"), theirs, ids, new=16)
    try:
        path = locate("smollm2-135m-instruct")
    except UserError as error:
        print(f"smollm2-135m-instruct skipped: {error}")
        return 0 if good else 1
    model, theirs = gguf.read_model(gguf.GGUF(path), "float32"), load_gguf(path)
    good &= compare("smollm2, conversation", model, theirs, np.array([SMOLLM2_IDS]), new=24)
    ids = generator.integers(17, model.config.vocab_size, (1, 256))
    good &= compare("smollm2, random ids", model, theirs, ids, new=2)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
