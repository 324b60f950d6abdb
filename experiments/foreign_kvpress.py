"""kvpress's side of `beside_kvpress`: its presses' scores of the entries of a prompt. Imports nothing of rcp."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from experiments.foreign import serve


def load(folder: str) -> tuple[Any, dict[str, str]]:
    import kvpress  # noqa: F401  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]

    # Both are kept: KVzip reads the tokenizer from the folder, which is gone by the time that it is asked.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    AutoTokenizer.from_pretrained = lambda *_, **__: tokenizer
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation=name).eval()
        for name in ("eager", "sdpa")
    }
    return models, {name: version(name) for name in ("kvpress", "transformers", "torch")}


def run(models: Any, ids: list[int]) -> dict[str, Any]:
    """{policy: scores [layers][kv_heads][entries]}; nothing is evicted."""
    import kvpress  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    presses = {
        "snapkv": kvpress.SnapKVPress(),
        "tova": kvpress.TOVAPress(),
        "keydiff": kvpress.KeyDiffPress(),
        "expected_attention": kvpress.ExpectedAttentionPress(),
        "observed": kvpress.ObservedAttentionPress(),
    }
    tokens, out = torch.tensor([ids]), {}
    for name, press in presses.items():
        found: dict[int, list] = {}

        def record(module: Any, *given: Any, press: Any = press, found: dict[int, list] = found) -> Any:
            found[int(module.layer_idx)] = press.score(module, *given)[0].float().tolist()
            return given[1], given[2]  # the keys and values as they are

        press.compress = record
        model = models["eager" if name == "observed" else "sdpa"]
        with torch.no_grad(), press(model):
            model(input_ids=tokens, use_cache=True)
        out[name] = [found[i] for i in sorted(found)]
    out["kvzip"] = _kvzip(models["sdpa"], tokens)
    return out


def _kvzip(model: Any, tokens: Any) -> list:
    import torch  # pyright: ignore[reportMissingImports]
    from kvpress import KVzipPress  # pyright: ignore[reportMissingImports]
    from transformers import DynamicCache  # pyright: ignore[reportMissingImports]

    press, found = KVzipPress(compression_ratio=0.5), []

    def record(_: Any) -> None:
        press.score_val[..., : press.n_sink] = press.score_val.amax() + 1.0  # as the method that this stands in for
        found.extend(press.score_val[:, 0].float().tolist())

    press.compress_post = record
    with torch.no_grad(), press(model):
        model(input_ids=tokens, past_key_values=DynamicCache(), use_cache=True)
    return found


if __name__ == "__main__":
    serve(load, run)
