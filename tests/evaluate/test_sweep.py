"""The sweep over budgets, with a reader whose answers are known."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.data.pack import collate, encode
from rcp.data.tokenizer import SymbolTokenizer
from rcp.evaluate.page import page
from rcp.evaluate.sweep import ROUND, Reader, Results, sweep
from rcp.policies import Bm25, First, Full, NoContext, Oracle, Random, Shorter
from rcp.types import Batch, Example, Role, UserError

pytestmark = pytest.mark.lax
TOKENIZER = SymbolTokenizer([f"w{i}" for i in range(300)] + ["<b>"])
SEGMENTS, WORDS, COUNT, ROWS = 10, 10, 7, 4


class Reading(NamedTuple):
    nll_sum: Any
    answer_tokens: Any
    exact: Any


def examples() -> list[Example]:
    """Segment 4 of example i holds the answer."""
    out = []
    for i in range(COUNT):
        context = tuple("".join(f" w{(i + 17 * s + j) % 299}" for j in range(WORDS)) for s in range(SEGMENTS))
        out.append(Example(" w0", context, " w1", " <b> w2", support=(4,), group=f"g{i % 2}"))
    return out


def batches() -> list[Batch]:
    encoded = [encode(example, TOKENIZER, index=i, group=i % 2) for i, example in enumerate(examples())]
    return [collate(encoded[at : at + ROWS], 128, SEGMENTS, ROWS) for at in range(0, COUNT, ROWS)]


def read(params: Any, batch: Batch) -> Reading:
    """Answers where all of segment 4 is there; the NLL is params["cost"] times the context tokens read."""
    context = batch.role == Role.CONTEXT
    answered = jnp.sum(context & (batch.segment == 4), axis=1) == WORDS
    nll = params["cost"] * jnp.sum(context, axis=1).astype(jnp.float32)
    return Reading(nll, jnp.sum(batch.role == Role.ANSWER, axis=1), answered)


POLICIES = (Full(), NoContext(), Shorter(), Random(), First(), Bm25(TOKENIZER.decode), Oracle())


@pytest.fixture(scope="module")
def results() -> Results:
    reader = Reader(read, {"cost": jnp.float32(0.5)})
    rates = (1.0, 0.5, 0.25, 0.22)
    return sweep(batches(), POLICIES, reader, keep_rates=rates, granularity="segment", groups=("g0", "g1"), shown=5)


def of(results: Results, method: str, rate: float) -> int:
    return results.settings.index((method, rate))


def test_rows_of_weight_zero_are_left_out(results: Results) -> None:
    np.testing.assert_array_equal(results.index, np.arange(COUNT))
    np.testing.assert_array_equal(results.group, np.arange(COUNT) % 2)
    np.testing.assert_array_equal(results.context, SEGMENTS * WORDS)
    np.testing.assert_array_equal(results.answer_tokens, 2)
    assert results.nll.shape == results.em.shape == results.kept.shape == (len(results.settings), COUNT)


def test_every_method_spends_what_was_asked(results: Results) -> None:
    for (method, rate), kept in zip(results.settings, results.kept):
        expected = {"shorter": rate * 100 // WORDS * WORDS}.get(method, rate * 100)
        np.testing.assert_array_equal(kept, int(expected))


def test_the_reader_sees_what_was_kept_and_nothing_else(results: Results) -> None:
    np.testing.assert_allclose(results.nll, 0.5 * results.kept / 2)
    assert results.em[of(results, "full", 1.0)].all()
    assert not results.em[of(results, "none", 0.0)].any()
    assert results.em[of(results, "oracle", 0.22)].all()
    assert results.em[of(results, "first", 0.5)].all()  # segments 0 to 4
    assert not results.em[of(results, "first", 0.25)].any()


def test_one_compile_for_all_rates_of_a_static_length(results: Results) -> None:
    fixed = 4
    lengths = {min(-(-(fixed + kept) // ROUND) * ROUND, 128) for kept in (100, 50, 25, 22, 0)}
    assert lengths == {112, 64, 32, 16}
    assert results.compiles == len(lengths)


def test_methods_agree_where_they_keep_the_same(results: Results) -> None:
    for method in ("random", "first", "bm25", "oracle", "shorter"):
        np.testing.assert_array_equal(results.nll[of(results, method, 1.0)], results.nll[of(results, "full", 1.0)])


def test_it_is_deterministic(results: Results) -> None:
    reader = Reader(read, {"cost": jnp.float32(0.5)})
    again = sweep(batches()[:1], (Random(),), reader, keep_rates=(0.5, 0.25), granularity="segment")
    for rate in (0.5, 0.25):
        np.testing.assert_array_equal(
            again.em[of(again, "random", rate)], results.em[of(results, "random", rate)][:ROWS]
        )


def test_judge_replaces_the_reading(results: Results) -> None:
    calls = []

    def judge(batch: Batch) -> np.ndarray:
        calls.append(batch.tokens.shape)
        return np.arange(ROWS) % 2 == 0

    reader = Reader(read, {"cost": jnp.float32(1)}, correct=judge)
    found = sweep(batches()[:1], (Full(), First()), reader, keep_rates=(1.0,), granularity="segment")
    np.testing.assert_array_equal(found.em, [[True, False, True, False]] * 2)
    assert len(calls) == 1, "the same prompt is not read twice"


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.01])
def test_a_keep_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"eval\.keep_rates.*outside \(0, 1\]"):
        sweep(batches(), (Full(),), Reader(read), keep_rates=(0.5, rate), granularity="segment")


def test_nothing_to_evaluate_is_said() -> None:
    with pytest.raises(UserError, match="no examples"):
        sweep([], (Full(),), Reader(read), keep_rates=(0.5,), granularity="segment")


def test_page_shows_each_token_once_and_stands_alone(results: Results) -> None:
    text = page(results, TOKENIZER.decode, first="oracle")
    assert text.count("<h2>") == 5
    assert text.count("<details open>") == 5 * 4
    assert "<b>" not in text.replace("&lt;b&gt;", ""), "text of the prompt is escaped"
    assert "http" not in text and "<script" not in text
    one = results.shown[0]
    assert (one.role != Role.PAD).all()
    np.testing.assert_array_equal(one.keep[of(results, "oracle", 0.25)].sum(), 25 + 4)
    assert jax.tree.all(jax.tree.map(lambda keep: keep[one.role != Role.CONTEXT].all(), list(one.keep)))
