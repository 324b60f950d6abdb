"""llama.cpp's side of `bench_decode`: seconds to read a prompt and to decode, from the GGUF file itself."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import Any

from experiments.foreign import serve

CONTEXT = 8192


def load(path: str) -> tuple[Any, dict[str, str]]:
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    threads = len(os.sched_getaffinity(0))
    model = Llama(
        model_path=path, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, logits_all=False, verbose=False
    )
    return model, {"llama_cpp_python": version("llama_cpp_python"), "threads": str(threads)}


def run(model: Any, ids: list[list[int]], new: int, dtype: str = "") -> dict[str, Any]:
    """As in `foreign_transformers`; of one prompt, in the file's own number format."""
    if len(ids) != 1:
        raise ValueError("llama.cpp is asked for one prompt at a time")
    model.reset()
    start = time.perf_counter()
    model.eval(ids[0])
    read, decoded = time.perf_counter(), []
    for _ in range(new):
        decoded.append(int(model.sample(temp=0.0)))
        model.eval(decoded[-1:])
    return {"prefill": read - start, "decode": time.perf_counter() - read, "tokens": [decoded]}


if __name__ == "__main__":
    serve(load, run)
