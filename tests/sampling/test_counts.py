"""Counts against exact integers."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcp.sampling import count_of_rate, floor_of_share


def at_rate(tokens: int, rate: float) -> int:
    """As `rcp.infer.prompt` counts, in float64."""
    return max(1, int(rate * tokens + 1e-4))


counts = jax.jit(count_of_rate)
shares = jax.jit(floor_of_share)
TOTALS = np.concatenate(
    [np.arange(1, 3000), np.random.default_rng(0).integers(3000, 2**24, 3000), [262_143, 2**31 - 1]]
)


@pytest.mark.parametrize("rate", ["1", ".72", ".99", ".29", ".07", ".01", ".125", ".999", ".333", ".000001", ".123456"])
def test_a_rate_is_taken_as_it_is_written(rate):
    """Also where float32 keeps no token of the product apart."""
    found = np.asarray(counts(TOTALS.astype(np.int32), float(rate)))
    expected = [max(1, floor(Fraction(rate) * int(total) + Fraction(1, 10_000))) for total in TOTALS]
    np.testing.assert_array_equal(found, np.minimum(expected, TOTALS))
    if len(rate) <= 4:  # of more decimals float64 has the 1e-4 not quite where it belongs
        np.testing.assert_array_equal(found, [at_rate(int(total), float(rate)) for total in TOTALS])


def test_the_reported_count():
    assert int(counts(jnp.int32(262_143), 0.72)) == 188_742 == at_rate(262_143, 0.72)


@pytest.mark.parametrize("rate", [1 / 3, 2 / 3, 1 / 7, 0.5**0.5])
def test_other_rates_do_not_lose_a_whole_product(rate):
    totals = np.arange(0, 30_000, dtype=np.int32)
    found = np.asarray(counts(totals, rate))
    exact = np.floor(rate * totals + 1e-6)
    assert (found[exact > 0] >= exact[exact > 0]).all() and (found[:20_000] - exact[:20_000]).max() <= 1
    assert found[0] == 0 and found[1] == 1


@given(st.integers(0, 2**31 - 1), st.integers(1, 2**22 - 1), st.data())
def test_a_share_is_exact_beyond_what_the_product_fits_in(total, whole, data):
    part, more = data.draw(st.integers(0, whole)), data.draw(st.sampled_from([0, min(100, whole)]))
    if (expected := (total * part + more) // whole) < 2**31:
        assert int(floor_of_share(jnp.int32(total), jnp.int32(part), whole, more)) == expected


def test_what_llmlingua_spends_of_100_000_tokens():
    """Its budget times the context tokens seen so far; below 46,000 tokens the same as int32 without care."""
    rng = np.random.default_rng(0)
    for pooled in (1, 7, 45_000, 100_000, 1_000_000):
        seen = np.sort(rng.integers(0, pooled + 1, 500)).astype(np.int32)
        budget = np.full(500, pooled // 2 + 1, np.int32)
        found = np.asarray(shares(budget, seen, np.int32(pooled)))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, budget.astype(np.int64) * seen // pooled)
        if pooled < 46_000:
            np.testing.assert_array_equal(found, jax.jit(lambda b, s, p: b * s // p)(budget, seen, np.int32(pooled)))
