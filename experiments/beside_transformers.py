"""transformers (torch) and llama.cpp beside our reading and decoding: the same weights, the same token ids.

    python -m venv /tmp/beside && /tmp/beside/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors
    python -m venv /tmp/llama && /tmp/llama/bin/pip install llama-cpp-python      # builds it: a C++ compiler, cmake

Each runs under its own Python as a child process, which is asked for a batch of prompts at a time by
`experiments.bench_decode`. transformers gets the dequantised weights of the GGUF file in float32 and rounds them to
bfloat16 itself; it is run as its users run it by default: sdpa attention and a cache that grows by concatenation,
logits of the last place alone. llama.cpp reads the GGUF file as it is (Q4_1).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from experiments.beside import Foreign, write_model
from rcp.nn.transformer import Transformer
from rcp.pretrained import PretrainedTokenizer

INSTALL = "see the head of experiments/beside_transformers.py for what to install"


class Other:
    """Another implementation with the model loaded.

    Attributes:
      versions: what it says of itself.
    """

    def __init__(self, name: str, foreign: Foreign, versions: dict[str, Any]):
        self.name, self.versions = name, versions
        self._foreign = foreign

    def measure(self, ids: list[list[int]], new: int, dtype: str) -> dict[str, Any]:
        """{"prefill": seconds, "decode": seconds of `new` steps, "tokens": greedily decoded ones}."""
        return self._foreign.ask(ids=ids, new=new, dtype=dtype)

    def close(self) -> None:
        self._foreign.close()


def transformers(python: str, model: Transformer, tokenizer: PretrainedTokenizer) -> Other:
    """`model` is ours in float32. Raises UserError where the other Python cannot be run or lacks a package."""
    foreign = Foreign(python, "foreign_transformers", INSTALL)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model, tokenizer)
        return Other("transformers", foreign, foreign.ask(model=folder))


def llama_cpp(python: str, gguf: Path) -> Other:
    foreign = Foreign(python, "foreign_llama_cpp", INSTALL)
    return Other("llama.cpp", foreign, foreign.ask(model=str(gguf)))
