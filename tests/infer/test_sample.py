"""Drawn continuations against exact enumeration, and what they must not depend on."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.infer.generate import generate, generate_samples
from rcp.infer.sample import nucleus, sample_keys
from rcp.nn.transformer import Transformer, TransformerConfig

SYMBOLS, NEW = 6, 2
CONFIG = TransformerConfig(vocab_size=SYMBOLS, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32)
PROMPTS = np.array([[3, 1, 4, 1, 0], [2, 5, 1, 0, 0]], np.int32)
VALID = PROMPTS > 0


@pytest.fixture(scope="module")
def model() -> Transformer:
    graph, params = nnx.split(Transformer(CONFIG, rngs=nnx.Rngs(0)))
    return nnx.merge(graph, jax.tree.map(lambda x: x * 8, params))


@pytest.fixture(scope="module")
def draw(model: Transformer):
    """Two continuations' draws of two prompts; one compile for each number of samples."""

    @partial(jax.jit, static_argnames="samples")
    def run(rows, index, temperature, top_p, samples):
        tokens, valid = jnp.asarray(PROMPTS)[rows], jnp.asarray(VALID)[rows]
        return generate_samples(
            model,
            tokens,
            index,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            seed=7,
            max_new=NEW,
            valid=valid,
        )

    def drawn(rows: list[int], index: list[int], temperature: float, top_p: float, samples: int) -> np.ndarray:
        return np.asarray(run(np.array(rows), np.array(index, np.int32), temperature, top_p, samples).tokens)

    return drawn


def exact(forward, row: np.ndarray, temperature: float, top_p: float) -> dict[tuple[int, ...], float]:
    """Probability of every continuation of `NEW` tokens, the nucleus taken by hand."""

    def conditional(tokens: list[int]) -> np.ndarray:
        padded = np.zeros((1, 8), np.int32)
        padded[0, : len(tokens)] = tokens
        probs = np.asarray(jax.nn.softmax(forward(padded)[len(tokens) - 1] / temperature), np.float64)
        inside, total = np.zeros(SYMBOLS), 0.0
        for token in np.argsort(-probs):
            if total < top_p:
                inside[token] = probs[token]
            total += probs[token]
        return inside / inside.sum()

    prompt, out = row.tolist(), {}
    first = conditional(prompt)
    second = {a: conditional([*prompt, a]) for a in range(SYMBOLS)}
    for a, b in itertools.product(range(SYMBOLS), repeat=2):
        out[a, b] = float(first[a] * second[a][b])
    return out


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.7)])
def test_frequencies_are_those_of_exact_enumeration(model, draw, temperature: float, top_p: float) -> None:
    count, forward = 4096, jax.jit(lambda tokens: model(tokens)[0])
    found = draw([0, 1], [0, 1], temperature, top_p, count)
    for row in range(2):
        expected = exact(forward, PROMPTS[row][VALID[row]], temperature, top_p)
        pairs, counts = np.unique(found[row], axis=0, return_counts=True)
        frequency = {tuple(pair): n / count for pair, n in zip(pairs.tolist(), counts.tolist())}
        assert all(expected[pair] > 0 for pair in frequency), "nothing outside the nucleus"
        distance = sum(abs(frequency.get(pair, 0.0) - p) for pair, p in expected.items()) / 2
        assert distance < 0.05, "total variation; 36 cells and 4096 draws give about .03"
    assert not np.array_equal(found[0], found[1])


def test_temperature_zero_is_greedy_and_the_temperature_is_traced(model) -> None:
    greedy = jax.jit(lambda t, v: generate(model, t, valid=v, max_new=NEW))(PROMPTS, VALID)
    traces = []

    @jax.jit
    def run(temperature, top_p):
        traces.append(1)
        index = jnp.arange(2, dtype=jnp.int32)
        return generate_samples(
            model, PROMPTS, index, samples=3, temperature=temperature, top_p=top_p, max_new=NEW, valid=VALID
        ).tokens

    for top_p in (1.0, 0.5):
        assert run(0.0, top_p).tolist() == [[row] * 3 for row in greedy.tokens.tolist()]
    assert run(2.0, 1.0).tolist() != run(0.0, 1.0).tolist()
    assert len(traces) == 1


def test_an_examples_draws_do_not_depend_on_its_batch(draw) -> None:
    both = draw([0, 1], [10, 11], 1.0, 0.9, 4)
    turned = draw([1, 0], [11, 10], 1.0, 0.9, 4)
    other = draw([1, 1], [11, 12], 1.0, 0.9, 4)
    assert both[1].tolist() == turned[0].tolist() == other[0].tolist() != other[1].tolist()
    assert both[0].tolist() == turned[1].tolist()
    index = jnp.array([11], jnp.int32)
    four, six = (jax.random.key_data(sample_keys(7, index, samples)) for samples in (4, 6))
    assert six[:, :4].tolist() == four.tolist(), "more samples leave the first as they were"


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probs = np.array([[0.1, 0.5, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]], np.float32)
    for top_p, first, second in [(0.0, 1, 1), (0.5, 1, 2), (0.51, 2, 3), (0.9, 3, 4), (1.0, 4, 4)]:
        inside = np.asarray(nucleus(jnp.asarray(probs), top_p))
        assert inside.sum(axis=1).tolist() == [first, second], top_p
        assert inside[0, 1] and (top_p >= 0.95 or not inside[0, 0])


def test_the_prompt_is_read_once_for_all_samples(model) -> None:
    read = []

    class Counting:
        """The model, which notes how many rows and tokens each reading has."""

        def __getattr__(self, name: str):
            return getattr(model, name)

        def hidden(self, tokens, **rest):
            read.append(tokens.shape)
            return model.hidden(tokens, **rest)

        def embed(self, tokens):  # the first thing that a decoding step does
            read.append(tokens.shape)
            return model.embed(tokens)

    index = jnp.arange(2, dtype=jnp.int32)
    counting: Transformer = Counting()  # pyright: ignore[reportAssignmentType]
    jax.eval_shape(
        lambda: generate_samples(counting, PROMPTS, index, samples=5, temperature=1.0, max_new=NEW, valid=VALID)
    )
    assert read == [(2, 5), (10, 1)], "two prompts of five tokens once, then a token of each of ten continuations"
