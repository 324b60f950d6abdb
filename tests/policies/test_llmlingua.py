"""LLMLingua against a loop that reads the compressed text anew for every block."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.evaluate.reading import Reader
from rcp.evaluate.sweep import sweep
from rcp.nn.pruner import EXPAND, budget_of_rate
from rcp.nn.reader import Reading
from rcp.policies import LLMLingua
from rcp.policies.llmlingua import KEPT
from rcp.types import Batch, Role
from tests.policies.prompts import KEY, MODEL, PROMPTS, PRUNE, SEGMENTS, log_probs, prompts, rows_of
from tests.tiny import Prompt, batch_of

POLICY = LLMLingua.of(MODEL, length=8, block=4)


def surprise(text: list[int]) -> np.ndarray:
    """-log p of each token of a text; 0 of its first."""
    if len(text) < 2:
        return np.zeros(len(text))
    following = np.asarray(text)[1:, None]
    return np.concatenate([[0], -np.take_along_axis(log_probs(np.asarray(text))[:-1], following, axis=1)[:, 0]])


def naive_kept(batch: Batch, row: int, budget: int, block: int) -> list[int]:
    """Places of the prompt that are kept of the context."""
    tokens, segment = batch.tokens[row].tolist(), batch.segment[row]
    members = [np.flatnonzero(segment == s).tolist() for s in range(segment.max() + 1)]
    perplexity = [surprise([tokens[i] for i in m]).sum() / max(len(m) - 1, 1) for m in members]
    chosen: list[int] = []
    for s in np.argsort(-np.array(perplexity)):
        if len(chosen) < int(EXPAND * budget):
            chosen += members[s]
    text = np.flatnonzero(batch.role[row] == Role.INSTRUCTION).tolist() + sorted(chosen)
    compressed: list[int] = []
    kept: list[int] = []
    seen = 0
    for start in range(0, len(text), block):
        part = text[start : start + block]
        values = surprise([tokens[i] for i in compressed + part])[len(compressed) :]
        context = [(value, i) for value, i in zip(values, part) if segment[i] >= 0]
        seen += len(context)
        share = budget * seen // len(chosen) - len(kept)
        best = {i for _, i in sorted(context, reverse=True)[:share]}
        kept += sorted(best)
        compressed += [i for i in part if segment[i] < 0 or i in best]
    return kept


def kept_by(policy: LLMLingua, batch: Batch, budget) -> list[list[int]]:
    scores = policy.scores(batch, key=KEY, budget=budget)
    pruned = PRUNE(scores, batch, budget, granularity=policy.granularity)
    np.testing.assert_array_equal(pruned.kept, budget)
    return [np.flatnonzero(keep & (role == Role.CONTEXT)).tolist() for keep, role in zip(pruned.keep, batch.role)]


@pytest.mark.parametrize("block", [4, 7])
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5, 1.0])
def test_it_keeps_what_the_loop_keeps(block: int, rate: float) -> None:
    batch = prompts()
    budget = budget_of_rate(batch, rate)
    found = kept_by(replace(POLICY, block=block), batch, budget)
    assert found == [naive_kept(batch, row, int(budget[row]), block) for row in range(len(PROMPTS))]


def test_padding_and_order_of_the_batch_change_nothing() -> None:
    batch, order = prompts(), [2, 0, 1]
    budget = np.asarray(budget_of_rate(batch, 0.4))
    found = kept_by(POLICY, batch, budget)
    assert kept_by(POLICY, rows_of(prompts(40), order), budget[order]) == [found[row] for row in order]


def test_neither_question_nor_answer_is_looked_at() -> None:
    batch = prompts()
    budget = budget_of_rate(batch, 0.4)
    other = batch._replace(tokens=np.where(batch.role > Role.CONTEXT, 5, batch.tokens))
    of_one, of_other = (POLICY.scores(x, key=KEY, budget=budget) for x in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, of_one, of_other)


def test_forced_tokens_are_kept_within_the_budget() -> None:
    batch = batch_of((Prompt((4, 3, 5, 2), forced=((2, 4), (0, 0))),), 32, SEGMENTS)
    (kept,) = kept_by(POLICY, batch, np.array([5], np.int32))
    assert {1, 12} <= set(kept)


def test_a_forced_token_of_a_segment_that_is_left_out_is_part_of_what_is_compressed() -> None:
    whole = prompts()
    budget = np.full(whole.index.shape, 2, np.int32)
    first = PRUNE(POLICY.scores(whole, key=KEY, budget=budget), whole, budget, granularity="two_stage")
    left_out = ~np.asarray(first.token_pool)
    places = [int(np.flatnonzero((row == Role.CONTEXT) & out)[-1]) for row, out in zip(whole.role, left_out)]
    forced = np.zeros(whole.role.shape, bool)
    forced[np.arange(len(places)), places] = True
    batch = whole._replace(forced=forced)
    scores = POLICY.scores(batch, key=KEY, budget=budget)
    compressed = (np.asarray(scores.tokens) > KEPT / 2).sum(axis=1)
    np.testing.assert_array_equal(compressed, budget)
    for row, place in enumerate(places):
        assert scores.tokens[row, place] > KEPT / 2


def test_the_sweep_scores_it_once_a_budget() -> None:
    asked: list[list[int]] = []

    class Watched(LLMLingua):
        def scores(self, batch, *, key, budget=None):
            asked.append(np.asarray(budget).tolist())
            return super().scores(batch, key=key, budget=budget)

    def read(params, batch: Batch) -> Reading:
        count = jnp.sum(batch.role == Role.CONTEXT, axis=1, dtype=jnp.int32)
        return Reading(count.astype(jnp.float32), jnp.ones_like(count), count > 0, count[:, None] > 0)

    batch = prompts()
    policy = Watched(graph=POLICY.graph, state=POLICY.state, length=8, block=4)
    results = sweep([batch], [policy], Reader(read), keep_rates=(0.5, 0.25), granularity="segment")
    budgets = [np.asarray(budget_of_rate(batch, rate)).tolist() for rate in (0.5, 0.25)]
    assert asked == [budgets[0], *budgets], "the first time to compile"
    np.testing.assert_array_equal(results.kept, budgets)
    assert (results.prune_seconds > 0).all()
