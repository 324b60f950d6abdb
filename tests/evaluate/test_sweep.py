"""The sweep over budgets, with a reader whose answers are known."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcp.evaluate import lengths
from rcp.evaluate.budgets import Budget, forced_over, make_budgets
from rcp.evaluate.lengths import LENGTHS, ROUND, shared_lengths
from rcp.evaluate.page import page
from rcp.evaluate.reading import Judge, Reader
from rcp.evaluate.results import Results
from rcp.evaluate.sweep import sweep
from rcp.policies import Bm25, First, Full, Learned, NoContext, Oracle, Random, Shorter
from rcp.policies.base import spread_segments
from rcp.types import Batch, Role, UserError
from tests.evaluate.known import COUNT, ROWS, SEGMENTS, TOKENIZER, WORDS, Reading, batches, read

pytestmark = pytest.mark.lax
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


def test_one_compile_serves_all_settings_and_reads_no_more_than_each_needs() -> None:
    traced: list[int] = []

    def counting(params: Any, batch: Batch) -> Reading:
        """Of each static length that is traced, the answer says which one was run."""
        traced.append(batch.tokens.shape[1])
        found = read(params, batch)
        return found._replace(nll_sum=jnp.full_like(found.nll_sum, batch.tokens.shape[1]))

    rates = (1.0, 0.5, 0.25, 0.22)
    results = sweep(
        batches(), POLICIES, Reader(counting, {"cost": jnp.float32(1)}), keep_rates=rates, granularity="segment"
    )
    assert results.compiles == 1
    assert traced == [16, 32, 64, 112]
    fixed = 4
    for (_, rate), nll in zip(results.settings, results.nll):
        np.testing.assert_array_equal(2 * nll, -(-(fixed + int(rate * 100)) // ROUND) * ROUND)


def test_shared_lengths_are_few_and_hold_every_need() -> None:
    assert shared_lengths(np.array([3, 16, 17, 60]), 112) == [16, 32, 64]
    assert shared_lengths(np.array([3, 110]), 112) == [16, 112]
    assert shared_lengths(np.array([3, 110]), 111) == [16, 111]
    needs = np.random.default_rng(0).integers(1, 3000, 200)
    found = shared_lengths(needs, 3000)
    assert len(found) <= LENGTHS and found == sorted(found)
    assert max(found) >= needs.max() and all(length % ROUND == 0 or length == 3000 for length in found)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_no_choice_of_as_many_lengths_reads_less(needs: list[int]) -> None:
    whole, most = 384, 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lengths, "LENGTHS", most)
        found = shared_lengths(np.array(needs), whole)
    several = sorted({min(-(-need // ROUND) * ROUND, whole) for need in needs})

    def read(chosen: Iterable[int]) -> int:
        return sum(min(length for length in chosen if length >= min(need, whole)) for need in needs)

    others = (c for count in range(most) for c in combinations(several[:-1], count))
    assert len(found) <= most and read(found) == min(read((*chosen, several[-1])) for chosen in others)


def test_a_number_of_tokens_is_one_more_budget() -> None:
    reader = Reader(read, {"cost": jnp.float32(0.5)})
    found = sweep(batches(), (Full(), First()), reader, keep_rates=(0.5, 0.3), keep_tokens=(30,), granularity="segment")
    assert found.settings == (("full", 1.0), ("first", 0.3), ("first", 0.5)), "an equal rate gives way"
    np.testing.assert_array_equal(found.kept[1:], [[30] * COUNT, [50] * COUNT])
    assert [str(budget) for budget in make_budgets(batches(), (), (20, 40))] == ["0.2 (20 tokens)", "0.4 (40 tokens)"]
    (budget,) = make_budgets(batches(), (), (1000,))
    assert (budget, str(budget)) == (Budget(1.0, 1000), "1 (1000 tokens)")
    np.testing.assert_array_equal(budget.of(batches()[0]), 100)
    with pytest.raises(
        UserError, match="keep_tokens 200 and 300 both keep 1 of these contexts, which have at most 100"
    ):
        make_budgets(batches(), (), (50, 200, 300))


def test_forced_tokens_above_the_budget_are_counted_and_kept() -> None:
    prompts = batches()
    for number, batch in enumerate(prompts):
        batch.forced[number + 1] = batch.role[number + 1] == Role.CONTEXT
    budgets = make_budgets(prompts, (1.0, 0.5, 0.25), ())
    assert forced_over(prompts, budgets).endswith(f": 2 of {COUNT} at 0.5, 2 of {COUNT} at 0.25")
    assert forced_over(batches(), budgets) == ""
    found = sweep(prompts, (First(),), Reader(read, {"cost": jnp.float32(1)}), keep_rates=(0.5,), granularity="segment")
    np.testing.assert_array_equal(found.kept[0], [50, 100, 50, 50, 50, 50, 100])


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


def test_what_is_compiled_runs_once_before_it_is_timed() -> None:
    """And only then: every other prompt is read once."""
    runs: list[tuple[int, float]] = []

    def noted(params: Any, batch: Batch) -> Reading:
        jax.debug.callback(
            lambda index, cost: runs.append((int(index), float(cost))), batch.index[0], jnp.sum(batch.tokens)
        )
        return read(params, batch)

    reader = Reader(noted, {"cost": jnp.float32(1)})
    sweep(batches(), (First(), Oracle()), reader, keep_rates=(0.5, 0.25), granularity="segment")
    jax.effects_barrier()
    assert len(set(runs)) > len(batches())
    assert runs[0] == runs[1] and len(runs) == 1 + len(set(runs))


def test_a_pruner_that_decides_itself_is_told_apart() -> None:
    score = lambda batch, seen, budget: spread_segments(jnp.asarray(batch.support) - 0.5, batch)  # noqa: E731
    said: list[str] = []
    reader = Reader(read, {"cost": jnp.float32(1)})
    ours = Learned(score=score, draw="likely")
    found = sweep(batches(), (Full(), ours), reader, keep_rates=(0.5,), granularity="segment", progress=said.append)
    assert found.unswept == ("full", "none", "ours")
    assert [found.asked(setting) for setting in found.settings] == [1.0, None]
    np.testing.assert_array_equal(found.kept, [[100] * COUNT, [10] * COUNT])
    assert said[0].startswith("full at 1: ") and said[1].startswith("ours: ")


def test_judge_replaces_the_reading(results: Results) -> None:
    calls = []

    def correct(decoded: Any, batch: Batch) -> np.ndarray:
        calls.append(batch.tokens.shape)
        np.testing.assert_array_equal(decoded, 3)
        return np.arange(ROWS) % 2 == 0

    judge = Judge(lambda params, batch: jnp.full(len(batch.tokens), params["cost"] + 2), correct)
    reader = Reader(read, {"cost": jnp.float32(1)}, judge)
    found = sweep(batches()[:1], (Full(), First()), reader, keep_rates=(1.0,), granularity="segment")
    np.testing.assert_array_equal(found.em, [[True, False, True, False]] * 2)
    assert len(calls) == 1, "the same prompt is not read twice"
    assert found.decoded


class Look:
    """What a pruner sees: the first token of every segment; counts its looks."""

    def __init__(self):
        self.looks, self.forgot = 0, 0

    def forget(self) -> None:
        self.forgot += 1

    def __call__(self, batch: Batch) -> Any:
        self.looks += 1
        places = np.arange(SEGMENTS)[None, :, None] == batch.segment[:, None]
        return np.take_along_axis(batch.tokens, places.argmax(axis=2), axis=1).astype(np.float32)


def test_a_pruner_that_is_told_the_budget_looks_once_a_batch() -> None:
    """Once more on the first, which compiles and is then forgotten; the time of the look counts at every budget."""

    def score(batch: Batch, seen: Any, budget: Any) -> Any:
        return spread_segments(jnp.asarray(seen) * budget[:, None].astype(jnp.float32), batch)

    look = Look()
    ours = Learned(score=score, look=look, told=True)
    found = sweep(
        batches(), (ours,), Reader(read, {"cost": jnp.float32(1)}), keep_rates=(0.5, 0.2), granularity="segment"
    )
    assert (look.looks, look.forgot) == (len(batches()) + 1, 1)
    np.testing.assert_array_equal(found.kept, [[50] * COUNT, [20] * COUNT])


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
