"""The scorer against its formulas in numpy; what it is trained on against attention written out; exact budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction import ADA, GLOBAL, PYRAMID
from rcp.eviction import prompt as eviction_prompt
from rcp.eviction.base import EvictionPolicy
from rcp.eviction.compaction import candidates
from rcp.eviction.learned import Learned, Weights, inputs_of_entry, question_attention
from rcp.eviction.prompt import Eviction, choose, read_prompt
from rcp.eviction.stream import start, step
from rcp.eviction.usefulness import usefulness
from rcp.nn.eviction_scorer import ScorerShape, init_scorer
from tests.eviction import naive
from tests.eviction.small import DIM, GROUP, KV_HEADS, LAYERS, LENGTHS, VOCABULARY, layers_of, prompts, small_model

MEASURES = ("keydiff",)
SHAPES = {
    "layer": {"heads": "layer", "kernel": 3, "common": 16},
    "own": {"heads": "own", "kernel": 3},
    "shared": {"heads": "shared"},
}


def learned(kind: str, question: bool = False) -> Learned:
    """A scorer of random parameters, none of them 0."""
    inputs = inputs_of_entry(DIM, len(MEASURES), question)
    shape = ScorerShape(LAYERS, KV_HEADS, inputs, width=6, **SHAPES[kind])
    weights = init_scorer(shape, jax.random.key(0))
    rng = np.random.default_rng(1)
    filled = {name: np.asarray(x) + rng.normal(size=x.shape).astype(np.float32) / 4 for name, x in weights.items()}
    return Learned(shape, Weights(filled), MEASURES, question)


@pytest.fixture(scope="module")
def model():
    return small_model()


def unrotated(k: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    half = k.shape[-1] // 2
    turned = k[..., :half] + 1j * k[..., half:]
    turned = turned * np.exp(-1j * np.arange(len(k))[:, None, None] * frequencies)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def naive_scores(policy: Learned, number: int, layer, frequencies: np.ndarray) -> np.ndarray:
    """[kv_heads, tokens], one head and one entry after the other."""
    w = {name: x[number].astype(np.float64) for name, x in policy.weights.tree.items()}
    count, plain, unlike = len(layer.k), unrotated(layer.k, frequencies), naive.keydiff(layer)

    def described(head: int, n: int) -> np.ndarray:
        vectors, sizes = [], []
        for x in (plain[n, head], layer.v[n, head]):
            size = np.sqrt(np.mean(x**2) + 1e-6)
            vectors.append(x / size)
            sizes.append(np.log(size))
        place = [np.log1p(n) / 4, np.log1p(count - 1 - n) / 4, n / count, float(n < 4)]
        return np.concatenate([*vectors, sizes, place, [unlike[head, n]]])

    def network(rows: np.ndarray, which: int) -> np.ndarray:
        h = gelu(rows @ w["first"][which] + w["first_bias"][which])
        if "mix" in w:
            beside = np.pad(h, ((1, 1), (0, 0)))
            h = h + sum(beside[j : j + count] * w["mix"][which, j] for j in range(3))
        return gelu(h @ w["second"][which] + w["second_bias"][which]) @ w["last"][which]

    heads = [np.stack([described(head, n) for n in range(count)]) for head in range(KV_HEADS)]
    if policy.shape.heads == "layer":
        out = network(np.concatenate([*heads, layer.x], axis=1), 0)
    else:
        own = policy.shape.heads == "own"
        out = np.concatenate([network(rows, head if own else 0) for head, rows in enumerate(heads)], axis=1)
    return out.T + w["last_bias"][:, None]


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_scores_are_the_formulas(model, kind):
    tokens, valid = prompts()
    policy = learned(kind)

    @jax.jit
    def run(tokens, valid):
        read = read_prompt(model, tokens, valid=valid, needs=policy.needs, chunk=8)
        return eviction_prompt.scores(model, candidates(read.cache), read.statistics, policy)

    found = np.asarray(run(tokens, valid))
    for i, length in enumerate(LENGTHS):
        for number, layer in enumerate(layers_of(model, tokens[i, :length])):
            expected = naive_scores(policy, number, layer, np.asarray(model.frequencies(), np.float64))
            np.testing.assert_allclose(found[i, number, :, :length], expected, atol=2e-3)


@pytest.mark.parametrize("allotment", [PYRAMID, ADA, GLOBAL])
def test_every_allotment_keeps_exactly_the_budget(model, allotment):
    tokens, valid = prompts()
    policy = learned("own")
    read = jax.jit(lambda t, v: read_prompt(model, t, valid=v, needs=policy.needs, chunk=8))(tokens, valid)
    budget = jnp.array([7, 3], jnp.int32)
    kept = jax.jit(lambda read: choose(model, read, Eviction(policy, allotment, sinks=2), budget))(read).keep
    assert kept.sum(axis=(1, 2, 3)).tolist() == [LAYERS * KV_HEADS * n for n in (7, 3)]
    assert np.all(np.asarray(kept)[..., :2])


def test_usefulness_is_the_attention_that_was_paid(model):
    """Of two questions of unequal length behind one context, against whole matrices of attention."""
    tokens, _ = prompts()
    context, rows = tokens[0, : LENGTHS[0]], [[3, 1, 4, 1, 5], [9, 2, 6]]
    answers = (2, 1)
    there = np.array([[True] * 5, [True] * 3 + [False] * 2])
    wide = np.array([rows[0], [*rows[1], 0, 0]], np.int32)
    answer = there & (np.arange(5)[None] >= np.array([[3], [2]]))

    @jax.jit
    def run(context, tokens, valid, answer):
        cache = read_prompt(model, context, chunk=8).cache
        return usefulness(model, cache, tokens, valid=valid, answer=answer)

    found = run(context[None], wide, there, answer)
    size = len(context)
    for row, own in enumerate(rows):
        for number, layer in enumerate(layers_of(model, np.concatenate([context, own]).astype(np.int32))):
            paid = naive.attention(layer)[:, size:-1, :size]  # by all but the last token of the answer
            paid = paid.reshape(KV_HEADS, GROUP, *paid.shape[1:])
            asked = paid[:, :, : len(own) - answers[row]]
            expected = (paid.max(axis=(1, 2)), paid.mean(axis=(1, 2)), asked.max(axis=(1, 2)))
            for x, y in zip(found, expected, strict=True):
                np.testing.assert_allclose(x[number, row, :, :size], y, atol=5e-4)


class Attention(EvictionPolicy):
    """What a policy that looks at the question sees of it."""

    @property
    def needs(self):
        return learned("own", question=True).needs

    def scores(self, seen, *, budget=None, keys=None):
        return question_attention(seen)


def test_a_question_read_with_its_context_is_seen_as_in_training(model):
    tokens, valid = prompts()
    policy = learned("own", question=True)

    @jax.jit
    def run(tokens, valid, question):
        read = read_prompt(model, tokens, valid=valid, question=question, needs=policy.needs, chunk=8)
        options = {"question": read.question}
        found = candidates(read.cache)
        return [eviction_prompt.scores(model, found, read.statistics, p, **options) for p in (Attention(), policy)]

    @jax.jit
    def behind(tokens, asked):
        cache = read_prompt(model, tokens, chunk=8).cache
        every = jnp.ones(asked.shape, bool)
        return usefulness(model, cache, asked, valid=every, answer=~every).asked

    last = np.asarray(LENGTHS)[:, None] - np.arange(tokens.shape[1])[None]  # 1 at the last token
    (paid, scores), (_, other) = (run(tokens, valid, valid & (last <= count)) for count in (4, 2))
    context = LENGTHS[0] - 4
    expected = behind(tokens[:1, :context], tokens[:1, context : LENGTHS[0]])
    np.testing.assert_allclose(paid[0, ..., :context], expected[:, 0, :, :context], atol=1e-4)
    assert np.isfinite(scores).all() and not np.allclose(scores, other)


def test_a_scorer_of_heads_alone_streams(model):
    """One that sees all heads of a token does not: after an eviction they hold other tokens."""
    policy = learned("own")
    stream = start(model, Eviction(policy), 1, size=6, chunk=4)
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (3, 1, 4)).astype(np.int32)
    run = jax.jit(lambda stream, chunk: step(model, stream, chunk, Eviction(policy))[1])
    for chunk in tokens:
        stream = run(stream, chunk)
    assert np.all(np.asarray(stream.context.runs[0].length) == 6)
    with pytest.raises(ValueError, match="cannot stream"):
        start(model, Eviction(learned("layer")), 1, size=6, chunk=4)


def test_policies_of_equal_parameters_are_the_same_policy():
    assert learned("own") == learned("own") and hash(learned("own")) == hash(learned("own"))
    tree = learned("own").weights.tree
    changed = {**tree, "last": tree["last"] + 1}
    assert Weights(changed) != Weights(tree)
