"""Every policy's scores, gathered in chunks from a padded batch, against its formula written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction import (
    H2O,
    POLICIES,
    TOVA,
    ExpectedAttention,
    Full,
    KeyDiff,
    KVzip,
    Random,
    Repeat,
    SinksWindow,
    SnapKV,
    all_needs,
)
from rcp.eviction.base import Needs
from rcp.eviction.compaction import candidates
from rcp.eviction.prompt import read_prompt, scores
from tests.eviction import naive
from tests.eviction.small import KV_HEADS, LAYERS, LENGTHS, layers_of, prompts, small_model

WINDOW, AHEAD = 4, 16
REPEAT = Repeat(first=(3, 4, 5), later=(6, 7), suffix=(2,), chunk=8, sinks=4)
NEEDS = all_needs(
    Needs(window=WINDOW + 2), Needs(received=True, hidden=True), Needs(moments=4), Needs(reconstruction=True)
)
CHUNK = 7  # neither divides a length nor the width


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def rows():
    tokens, valid = prompts()
    return [row[there] for row, there in zip(tokens, valid)]


@pytest.fixture(scope="module")
def layers(model, rows):
    """[example][layer] of everything that the layers compute."""
    return [layers_of(model, row) for row in rows]


@pytest.fixture(scope="module")
def read(model):
    tokens, valid = prompts()
    return jax.jit(lambda t, v: read_prompt(model, t, valid=v, needs=NEEDS, chunk=CHUNK, repeat=REPEAT))(tokens, valid)


@pytest.fixture(scope="module")
def scored(model, read):
    def run(policy, budget=None, keys=None):
        return np.asarray(
            jax.jit(
                lambda read: scores(model, candidates(read.cache), read.statistics, policy, budget=budget, keys=keys)
            )(read)
        )

    return run


def each(found, start=0):
    """(example, layer, scores [kv_heads, its entries from `start` on])."""
    for i, length in enumerate(LENGTHS):
        for j in range(LAYERS):
            yield i, j, found[i, j, :, start:length]


def test_what_is_gathered_in_chunks_is_what_the_layers_computed(layers, read):
    s = read.statistics
    for i, length in enumerate(LENGTHS):
        for j, layer in enumerate(layers[i]):
            np.testing.assert_allclose(s.queries[j, i], layer.q[-WINDOW - 2 :], atol=1e-4)
            np.testing.assert_allclose(s.received[j, i, :, :length], naive.h2o(layer), atol=1e-4)
            np.testing.assert_allclose(s.hidden[j, i, :length], layer.x, atol=1e-4)
            np.testing.assert_allclose(s.query_sum[j, i], layer.q_plain[4:].sum(0), atol=1e-3)
            assert s.query_count[j, i] == length - 4
            assert s.query_position[j, i].tolist() == list(range(length - WINDOW - 2, length))
    assert (s.received[:, 1, :, LENGTHS[1] :] == 0).all()  # nothing is seen at padding


def test_keydiff(layers, scored):
    for i, j, found in each(scored(KeyDiff())):
        np.testing.assert_allclose(found, naive.keydiff(layers[i][j]), atol=1e-5)


def test_expected_attention(model, layers, scored):
    frequencies = np.asarray(model.frequencies(), np.float64)
    policy = ExpectedAttention(ahead=AHEAD)
    found = scored(policy)
    for i, j, rest in each(found, policy.sinks):
        expected = naive.expected_attention(layers[i][j], frequencies, policy.sinks, AHEAD)
        np.testing.assert_allclose(rest, expected, rtol=2e-3, atol=1e-5)
        assert (found[i, j, :, : policy.sinks] == rest.max()).all()


def test_h2o(layers, scored):
    """The newest half of the budget first, the newest of all before; then by what was received."""
    budget = jnp.full((len(LENGTHS), LAYERS), 6, jnp.int32)
    for i, j, found in each(scored(H2O(), budget=budget)):
        np.testing.assert_allclose(found[:, :-3], naive.h2o(layers[i][j])[:, :-3], atol=1e-4)
        assert (np.diff(found[:, -3:]) > 0).all() and (found[:, -3:].min() > found[:, :-3].max())
    for i, j, found in each(scored(H2O(recent=0.0, per_query=True))):
        np.testing.assert_allclose(found, naive.observed(layers[i][j]), atol=1e-4)


def test_the_newest_of_h2o_are_of_the_context(model, read):
    """A question read with it is kept beside the budget, and takes no place of the newest."""
    length = np.asarray(read.cache.length)
    question = jnp.arange(read.cache.capacity)[None] >= length[:, None] - 3
    budget = jnp.full((len(LENGTHS), LAYERS), 6, jnp.int32)
    entries = candidates(read.cache)
    found = np.asarray(scores(model, entries, read.statistics, H2O(), question=question, budget=budget))
    for i, _, own in each(found):
        own = own[:, : length[i] - 3]
        assert (own[:, -3:].min() > own[:, :-3].max()) and (np.diff(own[:, -3:]) > 0).all()


def test_tova(layers, scored):
    for i, j, found in each(scored(TOVA())):
        np.testing.assert_allclose(found[:, :-1], naive.tova(layers[i][j])[:, :-1], atol=1e-5)
        assert (found[:, -1] > 1).all()


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv"])
def test_snapkv(name, layers, scored):
    policy = POLICIES[name](window=WINDOW, kernel=3)  # pyright: ignore
    for i, j, found in each(scored(policy)):
        np.testing.assert_allclose(found[:, :-WINDOW], naive.snapkv(layers[i][j], WINDOW, 3), atol=1e-5)
        assert (np.diff(found[:, -WINDOW:]) > 0).all() and (found[:, -WINDOW:] > 1).all()


def test_kvzip(model, rows, scored):
    """By reading prompt and request in one piece, for every chunk, with other code for the softmax over a subset."""
    found = scored(KVzip(sinks=0))
    for i, row in enumerate(rows):
        for start in range(0, len(row), REPEAT.chunk):
            again = row[start : start + REPEAT.chunk]
            request = REPEAT.first if start == 0 else (*REPEAT.later, *row[start - 8 : start])
            whole = layers_of(model, np.array([*row, *request, *REPEAT.suffix, *again], np.int32))
            for j, layer in enumerate(whole):
                expected = naive.kvzip(layer, len(row), start, REPEAT.chunk, REPEAT.sinks)
                np.testing.assert_allclose(found[i, j, :, start : start + len(again)], expected, atol=1e-4)
    assert (scored(KVzip())[:, :, :, :4] == 1).all()


def test_positions_alone(scored):
    for _, _, found in each(scored(SinksWindow(sinks=2))):
        count = found.shape[1]
        assert (np.argsort(-found, kind="stable", axis=1) == [0, 1, *range(count - 1, 1, -1)]).all()
    for _, _, found in each(scored(Full())):
        assert (found == 0).all()


def test_random_scores_are_the_examples_own(model, read, scored):
    keys = jax.random.split(jax.random.key(0), 2)
    found = scored(Random(), keys=keys)
    assert np.unique(found).size > 0.99 * found.size  # other in every layer, head and example
    turned = scored(Random(), keys=keys[::-1])
    np.testing.assert_array_equal(found[0], turned[1])
    assert found.shape == (2, LAYERS, KV_HEADS, read.cache.capacity)


def test_what_was_not_gathered_is_named(model, read):
    bare = read._replace(statistics=read.statistics._replace(received=None, queries=None, query_sum=None))
    budget = jnp.ones((2, LAYERS), jnp.int32)
    for policy in (H2O(), SnapKV(), ExpectedAttention()):
        with pytest.raises(ValueError, match="not gathered"):
            scores(model, candidates(bare.cache), bare.statistics, policy, budget=budget)
    with pytest.raises(ValueError, match="gathered from one position"):
        all_needs(Needs(moments=4), Needs(moments=2))
