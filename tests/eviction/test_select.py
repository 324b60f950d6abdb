"""Budgets are met exactly, whatever the scores, rates, guarantees and allotments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp import sampling
from rcp.eviction import ADA, GLOBAL, PYRAMID, UNIFORM, Allotment
from rcp.eviction.allotment import layer_budgets
from rcp.eviction.select import guarantees, select
from tests.eviction import naive

B, L, H, N = 3, 4, 2, 24
SELECT = {
    name: jax.jit(lambda s, b, v, f, q, a=a: select(s, b, valid=v, forced=f, beside=q, allotment=a).mask)
    for name, a in {"head": UNIFORM, "layer": ADA, "model": GLOBAL}.items()
}
BUDGETS = jax.jit(layer_budgets, static_argnums=(0, 3))


def case(seed):
    """Scores with ties, lengths, a few entries of a question and a few that are forced."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (B, L, H, N)).astype(np.float32) * rng.choice([1.0, 1e20])
    lengths = rng.integers(0, N + 1, B)
    valid = np.broadcast_to((np.arange(N)[None] < lengths[:, None])[:, None, None], scores.shape)
    beside = np.broadcast_to((rng.random((B, N)) < 0.1)[:, None, None], scores.shape)
    forced = rng.random(scores.shape) < rng.choice([0.0, 0.1])
    return scores, valid, forced, beside


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["head", "layer", "model"]), st.floats(0.01, 1.0), st.booleans())
def test_exactly_the_budget_is_kept(seed, across, rate, pyramid):
    scores, valid, forced, beside = case(seed)
    there = valid & ~beside
    tokens = jnp.asarray(there[:, 0, 0].sum(-1), jnp.int32)
    budget = sampling.count_of_rate(tokens, rate)
    shape = Allotment(layers="pyramid", beta=4) if pyramid else UNIFORM
    budgets = BUDGETS(shape, budget, tokens, L)
    keep = np.asarray(SELECT[across](scores, budgets, valid, forced, beside))
    axes = {"head": (3,), "layer": (2, 3), "model": (1, 2, 3)}[across]
    asked = np.broadcast_to(np.asarray(budgets)[..., None], (B, L, H)).sum(axis=tuple(a for a in axes if a < 3))
    must = (forced & there).sum(axes)
    counted = (keep & there).sum(axes)
    assert not (keep & ~valid).any() and (keep | ~(beside & valid)).all() and (keep | ~(forced & there)).all()
    if across == "layer":  # where heads are sure of a share, that may be what is more than the budget
        assert ((counted == asked) | (must > 0)).all() and (counted >= asked).all()
    else:
        np.testing.assert_array_equal(counted, np.maximum(asked, must))
    assert (np.asarray(budgets).sum(1) == L * np.asarray(budget)).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5000), st.floats(0.0, 1.0), st.integers(1, 40), st.sampled_from([0, 8, 64]))
def test_a_pyramid_sums_to_the_budget_and_falls(tokens, rate, beta, window):
    mean = int(rate * tokens)
    found = np.asarray(
        BUDGETS(
            Allotment(layers="pyramid", beta=beta, window=window),
            jnp.array([mean], jnp.int32),
            jnp.array([tokens], jnp.int32),
            7,
        )
    )[0]
    assert found.sum() == 7 * mean
    assert found.min() >= min(mean, window) and found.max() <= tokens
    assert (np.diff(found) <= 1).all()
    if beta == 1 or mean <= window:
        assert (found == mean).all()


def test_the_pyramid_of_the_paper():
    """As in the authors' code: (capacity - window) // beta at the top, twice the mean less that at the bottom."""
    found = np.asarray(layer_budgets(PYRAMID, jnp.array([128]), jnp.array([4096]), 32))[0]
    assert (found[0] - 64, found[-1] - 64) == (2 * 64 - 64 // 20, 64 // 20)
    assert layer_budgets(UNIFORM, jnp.array([5000]), jnp.array([4096]), 3).tolist() == [[4096] * 3]


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.9])
def test_adakv_is_the_rule_written_out(floor):
    scores = np.random.default_rng(1).normal(size=(B, L, H, N)).astype(np.float32)
    scores[:, :, 0] += 2  # one head would take nearly all
    budgets = jnp.full((B, L), 7, jnp.int32)
    valid = jnp.ones(scores.shape, bool)
    allotment = Allotment(across="layer", floor=floor)
    keep = np.asarray(select(jnp.asarray(scores), budgets, valid=valid, allotment=allotment).mask)
    for b in range(B):
        for layer in range(L):
            np.testing.assert_array_equal(keep[b, layer], naive.adakv(scores[b, layer], 7, floor))
    assert (keep.sum(-1) >= int(7 * floor)).all()


def test_one_top_k_over_the_model_is_a_sort_of_everything():
    scores = np.random.default_rng(2).normal(size=(B, L, H, N)).astype(np.float32)
    valid = np.ones(scores.shape, bool)
    keep = np.asarray(select(scores, jnp.full((B, L), 5, jnp.int32), valid=jnp.asarray(valid), allotment=GLOBAL).mask)
    for b in range(B):
        lowest = np.sort(scores[b].reshape(-1))[::-1][L * H * 5 - 1]
        np.testing.assert_array_equal(keep[b], scores[b] >= lowest)
    bounded = select(scores, jnp.full((B, L), 5, jnp.int32), valid=jnp.asarray(valid), allotment=GLOBAL, most=8).mask
    assert bounded.sum(axis=(1, 2, 3)).tolist() == [L * H * 5] * B and bounded.sum(-1).max() == 8


def test_guarantees_are_of_the_entries_in_use():
    valid = jnp.arange(N)[None, None, None] < jnp.array([N, 9, 2])[:, None, None, None]
    must = guarantees(jnp.broadcast_to(valid, (B, L, H, N)), sinks=2, recent=3)
    assert np.flatnonzero(must[0, 1, 1]).tolist() == [0, 1, N - 3, N - 2, N - 1]
    assert np.flatnonzero(must[1, 0, 0]).tolist() == [0, 1, 6, 7, 8]
    assert np.flatnonzero(must[2, 0, 0]).tolist() == [0, 1]


def test_draws_keep_the_budget_too_and_know_their_probability():
    scores = jnp.zeros((B, L, H, N))
    keys = jax.random.split(jax.random.key(0), B)
    subset = select(
        scores, jnp.full((B, L), 3, jnp.int32), valid=jnp.ones(scores.shape, bool), allotment=UNIFORM, keys=keys
    )
    assert (subset.mask.sum(-1) == 3).all()
    np.testing.assert_allclose(subset.log_prob, -np.log(N * (N - 1) * (N - 2)), rtol=1e-5)
    assert (subset.mask[0] != subset.mask[1]).any()
