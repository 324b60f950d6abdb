"""The other side of `experiments.beside_llmlingua`: llmlingua 0.2.2 in a Python of its own.

A request (`experiments.foreign`) is {"segments": [...], "target": n, "block": m, "filter": bool, "look": bool}.
`tiktoken` would fetch a vocabulary only to count tokens for a price: a stand-in takes its place.
"""

from __future__ import annotations

import sys
import time
import types
from importlib.machinery import ModuleSpec
from typing import Any

from experiments.foreign import serve


class Counter:
    """In place of OpenAI's tokenizer."""

    def encode(self, text: str) -> str:
        return text


def load(folder: str) -> tuple[Any, dict[str, str]]:
    """The compressor, which notes the ids that its token stage reads and leaves; and versions."""
    stub: Any = types.ModuleType("tiktoken")
    stub.__spec__ = ModuleSpec("tiktoken", None)  # transformers looks for it
    stub.encoding_for_model = lambda name: Counter()
    sys.modules.setdefault("tiktoken", stub)
    from importlib.metadata import version

    import llmlingua  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    class Noting(llmlingua.PromptCompressor):
        left: Any = None

        def iterative_compress_prompt(self, *args: Any, **options: Any) -> Any:
            self.left = super().iterative_compress_prompt(*args, **options)
            return self.left

    versions = {"llmlingua": version("llmlingua"), "torch": torch.__version__, "transformers": transformers.__version__}
    return Noting(folder, device_map="cpu"), versions


def compress(
    compressor: Any, segments: list[str], target: int, block: int, filter: bool, look: bool = True
) -> dict[str, Any]:
    """Text and seconds; to `look` at, also all ids, those left, and self-information of each (0 for the first)."""
    start = time.perf_counter()
    found = compressor.compress_prompt(
        segments, target_token=target, iterative_size=block, use_context_level_filter=filter
    )
    seconds = time.perf_counter() - start
    answer = {"text": found["compressed_prompt"], "seconds": seconds}
    if not look:
        return answer
    text = "\n\n".join(segments)
    ids = compressor.tokenizer(text, add_special_tokens=False).input_ids
    information = compressor.get_ppl(text, granularity="token").tolist()
    left = compressor.left[0][0].tolist()
    return answer | {"ids": ids, "left": left, "information": [0.0, *information]}


if __name__ == "__main__":
    serve(load, compress)
