"""The comparisons: what each keeps first, what it spends, and that nothing but the example decides its draws."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from rank_bm25 import BM25Okapi

from rcp.data.pack import collate, encode
from rcp.data.tokenizer import SymbolTokenizer
from rcp.nn.pruner import budget_of_rate, compact, prune
from rcp.nn.reader import CHUNK
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.policies import (
    POLICIES,
    Bm25,
    First,
    Full,
    Last,
    NoContext,
    Oracle,
    Perplexity,
    Random,
    Shorter,
)
from rcp.policies.perplexity import self_information
from rcp.policies.retrieval import bm25_scores
from rcp.types import Batch, Example, Role

WORDS = [f"w{i}" for i in range(20)] + ["anna", "tom", "lives", "in", "oslo", "rome", "where", "?", "."]
TOKENIZER = SymbolTokenizer(WORDS)
pytestmark = pytest.mark.lax  # the pruner is tested strictly elsewhere; scores are, in test_scores_are_strict
KEY = jax.random.key(0)
PRUNE = jax.jit(prune, static_argnames="granularity")
EXAMPLES = [
    Example(
        " w0", (" tom lives in rome .", " anna lives in oslo .", " w1 w2 w3"), " where anna ?", " oslo", support=(1,)
    ),
    Example(" w0", (" w4 w5", " w6", " w7 w8 w9 w10", " w11 w12"), " w8 ?", " w9", (2, 3)),
]


def batch_of(examples=EXAMPLES, length: int = 32, rows: int | None = None) -> Batch:
    encoded = [encode(example, TOKENIZER, index=i) for i, example in enumerate(examples)]
    return collate(encoded, length, 5, rows or len(encoded))


def kept_tokens(policy, batch: Batch, rate: float, granularity="segment") -> list[np.ndarray]:
    """Places in the context (0 first) that the policy keeps, for each example."""
    budget = policy.spend(batch, budget_of_rate(batch, rate))
    pruned = PRUNE(policy.scores(batch, key=KEY), batch, budget, granularity=policy.granularity or granularity)
    return [np.flatnonzero(np.asarray(k)[r == Role.CONTEXT]) for k, r in zip(pruned.keep, batch.role)]


def test_budget_is_the_floor_of_the_rate_and_at_least_one() -> None:
    batch = batch_of()
    totals = np.sum(batch.role == Role.CONTEXT, axis=1)
    for rate in (0.01, 0.1, 0.25, 1 / 3, 0.5, 0.99, 1.0):
        expected = np.maximum(1, np.floor(rate * totals + 1e-9)).astype(int)
        np.testing.assert_array_equal(budget_of_rate(batch, rate), expected)


@pytest.mark.parametrize("total", [100, 1000])
def test_budget_is_exact_where_the_product_is_whole(total: int) -> None:
    role = np.full((1, total), Role.CONTEXT, np.int8)
    batch = batch_of()._replace(role=role)
    found = jax.vmap(lambda rate: budget_of_rate(batch, rate)[0])(np.arange(1, 101, dtype=np.float32) / np.float32(100))
    np.testing.assert_array_equal(found, np.maximum(1, np.arange(1, 101) * total // 100))


@pytest.mark.parametrize("policy", [First(), Last(), Random(), Oracle(), Bm25(TOKENIZER.decode)], ids=lambda p: p.name)
@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("granularity", ["token", "segment"])
def test_every_method_spends_exactly_the_budget(policy, rate: float, granularity: str) -> None:
    batch = batch_of()
    for places, budget in zip(kept_tokens(policy, batch, rate, granularity), budget_of_rate(batch, rate)):
        assert len(places) == int(budget)


def test_first_and_last_keep_the_ends() -> None:
    batch = batch_of()
    totals = np.sum(batch.role == Role.CONTEXT, axis=1)
    for first, last, n in zip(kept_tokens(First(), batch, 0.5), kept_tokens(Last(), batch, 0.5), totals):
        np.testing.assert_array_equal(first, np.arange(n // 2))
        np.testing.assert_array_equal(last, np.arange(n - n // 2, n))


def test_full_and_none_do_not_heed_the_budget() -> None:
    batch = batch_of()
    totals = np.sum(batch.role == Role.CONTEXT, axis=1)
    assert [len(p) for p in kept_tokens(Full(), batch, 0.1)] == totals.tolist()
    assert [len(p) for p in kept_tokens(NoContext(), batch, 1.0)] == [0, 0]


def test_shorter_takes_whole_segments_while_they_fit() -> None:
    batch = batch_of()  # segments of 5, 5, 3 and of 2, 1, 4, 2 tokens
    assert [len(p) for p in kept_tokens(Shorter(), batch, 0.5)] == [5, 3]  # 6 and 4 tokens allowed
    assert [len(p) for p in kept_tokens(Shorter(), batch, 0.2)] == [0, 0]  # 2 and 1 allowed: nothing whole fits
    assert [len(p) for p in kept_tokens(Shorter(), batch, 1.0)] == [13, 9]
    forced = batch._replace(
        forced=(batch.segment == 2) & (batch.role == Role.CONTEXT)
    )  # the third, of 3 and of 4 tokens
    found = [p.tolist() for p in kept_tokens(Shorter(), forced, 0.7)]  # 9 and 6 tokens allowed
    assert found == [[*range(5), *range(10, 13)], [*range(2), *range(3, 7)]]
    assert [len(p) for p in kept_tokens(Shorter(), forced, 0.5)] == [3, 4]  # 6 and 4: the first does not fit beside it
    assert [len(p) for p in kept_tokens(Shorter(), forced, 0.1)] == [3, 4]  # forced tokens are kept all the same
    one = batch._replace(forced=(batch.segment == 2) & (np.cumsum(batch.segment == 2, axis=1) == 2))
    found = [p.tolist() for p in kept_tokens(Shorter(), one, 0.5)]  # 6 and 4: whole segments beside the forced token
    assert found == [[*range(5), 11], [*range(3), 4]]


def test_oracle_keeps_the_needed_segments_first() -> None:
    batch = batch_of()
    assert kept_tokens(Oracle(), batch, 5 / 13)[0].tolist() == [5, 6, 7, 8, 9]
    assert kept_tokens(Oracle(), batch, 6 / 9)[1].tolist() == [3, 4, 5, 6, 7, 8]


def test_bm25_finds_the_segment_that_shares_a_rare_word() -> None:
    scores = bm25_scores(EXAMPLES[0].context, EXAMPLES[0].question)
    assert int(np.argmax(scores)) == 1
    assert kept_tokens(Bm25(TOKENIZER.decode), batch_of(), 5 / 13)[0].tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "segments",
    [
        ["the cat sat", "the dog sat"],
        ["one red house", "one red tree", "one red boat"],
        ["cat", "cat cat", "dog"],
        ["the cat", "the dog", "the end"],
    ],
)
def test_bm25_of_few_segments_never_punishes_a_word_of_the_question(segments: list[str]) -> None:
    """Where most words are in most segments, so that rank_bm25's average idf is not above 0."""
    assert BM25Okapi([segment.split() for segment in segments]).average_idf <= 0
    for word in {word for segment in segments for word in segment.split()}:
        scores, has = bm25_scores(segments, word), np.array([word in segment.split() for segment in segments])
        assert (scores[has] > 0).all() and not scores[~has].any()


def test_bm25_is_that_of_rank_bm25_where_its_average_idf_is_positive() -> None:
    segments = ["the red cat sat", "the blue dog ran", "the green bird flew", "the old man slept"]
    plain = BM25Okapi([segment.split() for segment in segments])
    assert plain.average_idf > 0 and min(plain.idf.values()) == 0.25 * plain.average_idf
    np.testing.assert_array_equal(bm25_scores(segments, "the dog"), plain.get_scores(["the", "dog"]))


def test_bm25_breaks_ties_by_place_and_takes_empty_texts() -> None:
    np.testing.assert_array_equal(bm25_scores(["...", "!!"], "who?"), [0, 0])
    batch = batch_of([Example("", (" w1", " w2", " w3"), " ?", " w4")])
    assert np.asarray(Bm25(TOKENIZER.decode).scores(batch, key=KEY).segments)[0, :3].tolist() == [0, -1, -2]


def test_random_depends_on_the_example_and_the_key_only() -> None:
    whole, longer = batch_of(), batch_of(length=40, rows=3)
    one = jax.tree.map(lambda x: x[1:], whole)
    for granularity in ("token", "segment"):
        expected = kept_tokens(Random(), whole, 0.5, granularity)[1]
        np.testing.assert_array_equal(kept_tokens(Random(), one, 0.5, granularity)[0], expected)
        np.testing.assert_array_equal(kept_tokens(Random(), longer, 0.5, granularity)[1], expected)
    drawn = [np.asarray(Random().scores(whole, key=jax.random.key(s)).tokens) for s in (0, 1)]
    assert not np.array_equal(*drawn)
    assert not np.array_equal(drawn[0][0], drawn[0][1])


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = TransformerConfig(
        vocab_size=TOKENIZER.vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16
    )
    return Transformer(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("length", [24, CHUNK + 9])
def test_self_information_is_the_model_log_probability(model: Transformer, length: int) -> None:
    batch = batch_of(length=length)
    valid = batch.role != Role.PAD
    log_p = jax.jit(lambda x, v: jax.nn.log_softmax(model(x, valid=v), axis=-1))(batch.tokens, valid)
    expected = -np.take_along_axis(np.asarray(log_p)[:, :-1], batch.tokens[:, 1:, None], axis=-1)[..., 0]
    found = np.asarray(jax.jit(lambda b: self_information(model, b))(batch))
    assert (found[:, 0] == 0).all()
    np.testing.assert_allclose(found[:, 1:][valid[:, 1:]], expected[valid[:, 1:]], atol=1e-5)


def test_perplexity_keeps_the_most_surprising(model: Transformer) -> None:
    batch = batch_of()
    information = np.asarray(jax.jit(lambda b: self_information(model, b))(batch))
    policy = Perplexity.of(model)
    places = kept_tokens(policy, batch, 0.5, "token")
    for row, kept in enumerate(places):
        values = information[row][batch.role[row] == Role.CONTEXT]
        assert set(kept.tolist()) == set(np.argsort(-values, kind="stable")[: len(kept)].tolist())
    scores = policy.scores(batch, key=KEY)
    for segment in range(3):
        mean = information[0][batch.segment[0] == segment].mean()
        np.testing.assert_allclose(scores.segments[0, segment], mean, rtol=1e-5)


def test_compacted_prompt_reads_as_the_kept_text() -> None:
    batch = batch_of()
    budget = budget_of_rate(batch, 5 / 13)
    pruned = PRUNE(Oracle().scores(batch, key=KEY), batch, budget, granularity="segment")
    short = compact(batch, pruned.keep, 16)
    length = int(np.sum(np.asarray(short.role[0]) != Role.PAD))
    assert TOKENIZER.decode(np.asarray(short.tokens[0, :length])) == " w0 anna lives in oslo . where anna ? oslo"


def test_scores_are_strict() -> None:
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for policy in (Full(), NoContext(), Shorter(), First(), Last(), Random(), Oracle(), Bm25(TOKENIZER.decode)):
            batch = batch_of()
            scores = policy.scores(batch, key=KEY)
            assert scores.tokens.shape == batch.tokens.shape and scores.tokens.dtype == np.float32
            assert scores.segments.shape == batch.support.shape and scores.segments.dtype == np.float32
            assert policy.spend(batch, np.array([3, 3], np.int32)).dtype == np.int32


def test_names() -> None:
    from rcp.config import METHODS

    assert tuple(POLICIES) == METHODS
    assert all(cls.name == name for name, cls in POLICIES.items())
