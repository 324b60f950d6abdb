"""Exact match by decoding agrees with exact match by teacher forcing where only one text is right."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from rcp.data.pack import collate, encode
from rcp.data.tokenizer import SymbolTokenizer
from rcp.evaluate.answers import Decoding, by_decoding, majority
from rcp.infer.generate import generate
from rcp.nn.reader import read
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.types import Batch, Example

pytestmark = pytest.mark.lax
TOKENIZER = SymbolTokenizer([f"w{i}" for i in range(30)])


EMPTY = Example("", ("",), "", "")


def batch_of(examples: list[Example]) -> Batch:
    return collate([encode(example, TOKENIZER, index=i) for i, example in enumerate(examples)], 16, 2, len(examples))


def test_decoding_and_teacher_forcing_agree() -> None:
    config = TransformerConfig(
        vocab_size=TOKENIZER.vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16
    )
    model = Transformer(config, rngs=nnx.Rngs(1))
    prompts = [" w1 w2", " w3", " w4 w5 w6"]
    examples = [Example("", (prompt,), " w7", " w8 w9") for prompt in prompts]
    batch = batch_of(examples)
    valid = (batch.role != 0) & (batch.role != 4)
    greedy = jax.jit(lambda tokens, valid: generate(model, tokens, valid=valid, max_new=2).tokens)
    said = np.asarray(greedy(batch.tokens, valid))
    # The second of three examples gets a wrong gold answer, the others what the model says.
    gold = [TOKENIZER.decode(row.tolist()) for row in said]
    gold[1] = gold[1].rsplit(" ", 1)[0] + (" w3" if not gold[1].endswith(" w3") else " w4")
    examples = [Example("", (prompt,), " w7", answer) for prompt, answer in zip(prompts, gold)]
    batch = batch_of(examples)

    def check(text: str, example: Example) -> bool:
        return text == example.answer

    judge = by_decoding(lambda _: model, TOKENIZER, check, examples, Decoding(max_new=2))
    exact = jax.jit(lambda batch: read(model, batch, max_answer=4).exact)(batch)
    np.testing.assert_array_equal(exact, [True, False, True])
    decoded = jax.jit(judge.decode)(None, batch)
    np.testing.assert_array_equal(judge.correct(decoded, batch), exact)


def test_decoding_stops_where_an_answer_ends() -> None:
    """At a text of one token; one of several tokens stops nothing."""
    config = TransformerConfig(
        vocab_size=TOKENIZER.vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16
    )
    model, batch = Transformer(config, rngs=nnx.Rngs(1)), batch_of([Example("", (" w1 w2",), " w7", " w8")])

    def said(end: str) -> tuple[str, int]:
        heard: list[str] = []
        decoding = Decoding(6, end=end)
        judge = by_decoding(lambda _: model, TOKENIZER, lambda text, _: bool(heard.append(text)), [EMPTY], decoding)
        found = jax.jit(judge.decode)(None, batch)
        judge.correct(found, batch)
        return heard[0], int(found.length[0, 0])

    whole, length = said("")
    third = " " + whole.split()[2]
    assert length == 6 and said(f"{third}{third}") == (whole, 6)
    text, length = said(third)
    assert whole.startswith(text) and text.endswith(third) and length == 1 + whole.split().index(third.strip()) < 6


def test_the_answer_of_most_samples_is_judged_and_ties_go_to_the_first() -> None:
    def last(text: str) -> str | None:
        return text.split()[-1] if text.split() else None

    assert majority(["a 1", "b 2", "c 2", "d 1", "e 2"], last) == "b 2"
    assert majority(["a 1", "b 2", "c 2", "d 1"], last) == "a 1"
    assert majority(["", "b 2", ""], last) == "b 2", "a text without an answer has no vote"
    assert majority(["", ""], last) == ""


def test_samples_of_a_model_that_is_sure_are_its_greedy_answer() -> None:
    config = TransformerConfig(
        vocab_size=TOKENIZER.vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16
    )
    graph, params = nnx.split(Transformer(config, rngs=nnx.Rngs(1)))
    model = nnx.merge(graph, jax.tree.map(lambda x: x * 20, params))
    batch = batch_of([Example("", (prompt,), " w7", " w8 w9") for prompt in (" w1 w2", " w3")])
    heard: list[str] = []

    def check(text: str, example: Example) -> bool:
        heard.append(text)
        return True

    for decoding in (Decoding(2), Decoding(2, samples=5, temperature=0.01, top_p=0.9)):
        judge = by_decoding(lambda _: model, TOKENIZER, check, [EMPTY] * 2, decoding)
        judge.correct(jax.jit(judge.decode)(None, batch), batch)
    assert heard[:2] == heard[2:] and len(set(heard)) > 1
    assert str(decoding).startswith("the answer that most of 5 samples gave (temperature 0.01, top-p 0.9)")
