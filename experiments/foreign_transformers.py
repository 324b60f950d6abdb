"""transformers' side of `beside_transformers`: seconds to read prompts and to decode. Imports nothing of rcp."""

from __future__ import annotations

import inspect
import time
from importlib.metadata import version
from typing import Any

from experiments.foreign import serve


def load(folder: str) -> tuple[Any, dict[str, str]]:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    single = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    half = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    said = {name: version(name) for name in ("torch", "transformers")} | {"threads": str(torch.get_num_threads())}
    return {"float32": single, "bfloat16": half}, said


def run(models: Any, dtype: str, ids: list[list[int]], new: int) -> dict[str, Any]:
    """Greedy: {"prefill": seconds, "decode": seconds of `new` steps, "tokens": those decoded}."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import DynamicCache  # pyright: ignore[reportMissingImports]

    model, tokens = models[dtype], torch.tensor(ids)
    known = inspect.signature(model.forward).parameters
    last = "logits_to_keep" if "logits_to_keep" in known else "num_logits_to_keep"  # the older name
    decoded = []
    with torch.inference_mode():
        start = time.perf_counter()
        out = model(input_ids=tokens, past_key_values=DynamicCache(), use_cache=True, **{last: 1})
        read = time.perf_counter()
        for _ in range(new):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            decoded.append(token)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        end = time.perf_counter()
    return {"prefill": read - start, "decode": end - read, "tokens": torch.cat(decoded, 1).tolist()}


if __name__ == "__main__":
    serve(load, run)
