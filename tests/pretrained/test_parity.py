"""Parity with transformers, against reference files that `experiments/write_parity_references.py` writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.infer.generate import generate
from rcp.pretrained import hf, load

REFERENCES = Path(__file__).parent.parent / "references"
LIMIT = 2e-3


def logits_and_greedy(model, ids, new):
    graph, params = nnx.split(model)  # arguments, not constants of the program, which XLA would compile in

    @jax.jit
    def run(params, tokens):
        merged = nnx.merge(graph, params)
        return merged(tokens), generate(merged, tokens, max_new=new).tokens

    return [np.asarray(x) for x in run(params, jnp.asarray(ids))]


@pytest.mark.parametrize("name", ["llama2-untied", "llama3-tied", "qwen2-tied", "qwen3-untied-sharded"])
def test_tiny_checkpoint(name):
    reference = np.load(REFERENCES / name / "reference.npz")
    model = hf.read_model(REFERENCES / name, "float32")
    logits, greedy = logits_and_greedy(model, reference["ids"], reference["greedy"].shape[1])
    assert np.abs(logits - reference["logits"]).max() < LIMIT, str(reference["versions"])
    np.testing.assert_array_equal(greedy, reference["greedy"])


def test_smollm2_from_gguf():
    """Logits, cached greedy decoding and tokenizer of a real model."""
    reference = np.load(REFERENCES / "smollm2.npz")
    pretrained = load("smollm2-135m-instruct")
    logits, greedy = logits_and_greedy(pretrained.model, reference["ids"], reference["greedy"].shape[1])
    rows = logits[:, -reference["logits"].shape[1] :]
    assert np.abs(np.take_along_axis(rows, reference["top"], -1) - reference["logits"]).max() < LIMIT
    np.testing.assert_array_equal(rows.argmax(-1), reference["top"][..., 0])
    np.testing.assert_array_equal(greedy, reference["greedy"])

    tokenizer = pretrained.tokenizer
    text = str(reference["text"])
    assert tokenizer.encode(text) == reference["text_ids"].tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "What is the capital of Italy?"},
            {"role": "assistant", "content": "The capital of Italy is Rome."},
            {"role": "user", "content": "And how much is 17 plus 25?"},
        ]
    )
    assert tokenizer.encode(chat) == reference["ids"][0].tolist()
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (49152, 1, 2, 2)
    assert pretrained.config.tie_embeddings and pretrained.config.n_layers == 30
    assert len(pretrained.fingerprint) == 16 and pretrained.chat_template
