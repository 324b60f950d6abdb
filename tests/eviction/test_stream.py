"""A cache of fixed size: against reading everything, and against the eviction written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction import ADA, H2O, ExpectedAttention, KeyDiff, KVzip, Random, SinksWindow, SnapKV, stream
from rcp.eviction.prompt import Eviction, read_prompt
from rcp.infer.stream import prefill_stream
from tests.eviction import naive
from tests.eviction.small import GROUP, KV_HEADS, LAYERS, layers_of, prompts, reads_behind, small_model

ROW = np.random.default_rng(7).integers(1, 24, (1, 42)).astype(np.int32)
CHUNK, SIZE = 6, 9
QUESTION = jnp.array([[3, 1, 4]], jnp.int32)


def run(model, eviction, tokens, size=SIZE, valid=None):
    """(last hidden states, the stream) and how many programs were compiled."""
    compiled = jax.jit(lambda s, t, v: stream.step(model, s, t, eviction, valid=v))
    state = stream.start(model, eviction, len(tokens), size=size, chunk=CHUNK)
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    for first in range(0, tokens.shape[1], CHUNK):
        h, state = compiled(state, tokens[:, first : first + CHUNK], valid[:, first : first + CHUNK])
    return h, state, compiled._cache_size()


def held(state):
    """[layer][batch][head] positions."""
    (run,) = state.context.runs
    length = np.asarray(run.length)
    return np.asarray(run.position), length


def test_a_cache_that_holds_all_is_the_whole_cache():
    model = small_model()
    tokens, valid = prompts()
    _, state, compiled = run(model, Eviction(KeyDiff()), tokens, size=24, valid=valid)
    read = jax.jit(lambda t, v: read_prompt(model, t, valid=v))(tokens, valid)
    for i, length in enumerate((21, 14)):
        (entries,) = state.context.runs
        assert (entries.length[:, i] == length).all()
        np.testing.assert_allclose(entries.k[:, i, :length], read.cache.k[:, i, :length], atol=5e-4)
        np.testing.assert_allclose(entries.v[:, i, :length], read.cache.v[:, i, :length], atol=5e-4)
    assert compiled == 1


@pytest.mark.parametrize("repack", [False, True])
def test_sinks_and_window_over_long_input(repack):
    """StreamingLLM. A one-layer model then reads a question as behind just those tokens."""
    model = small_model(layers=1)
    _, state, compiled = run(model, Eviction(SinksWindow(sinks=2), repack=repack), ROW)
    places = [0, 1, *range(35, 42)]
    position, length = held(state)
    expected = list(range(SIZE)) if repack else places
    for head in range(KV_HEADS):
        assert length[0, 0, head] == SIZE and position[0, 0, :, head].tolist() == expected
    assert state.context.position.tolist() == [SIZE if repack else 42] and compiled == 1
    h = reads_behind(model)(state.context, QUESTION)
    shorter = jnp.concatenate([jnp.asarray(ROW[:, places]), QUESTION], axis=1)
    positions = jnp.asarray([[*places, 42, 43, 44]], jnp.int32)
    whole = model.hidden(shorter, positions=None if repack else positions)
    np.testing.assert_allclose(h, whole[:, SIZE:], atol=5e-4)


def test_h2o_remembers_what_was_received():
    """Step by step in numpy. With one layer queries and keys depend on nothing that was evicted."""
    model = small_model(layers=1)
    layer = layers_of(model, ROW[0])[0]
    _, state, _ = run(model, Eviction(H2O(recent=0.34)), ROW)
    newest = int(0.34 * SIZE)
    position, _ = held(state)
    for head in range(KV_HEADS):
        kept, received = [], {}
        for first in range(0, ROW.shape[1], CHUNK):
            chunk = list(range(first, first + CHUNK))
            received |= dict.fromkeys(chunk, 0.0)
            for t in chunk:
                seen = [*kept, *(j for j in chunk if j <= t)]
                for query in range(head * GROUP, (head + 1) * GROUP):
                    weights = naive.softmax(layer.k[seen, head] @ layer.q[t, query] / np.sqrt(layer.q.shape[-1]))
                    for j, w in zip(seen, weights):
                        received[j] += w / GROUP
            there = [*kept, *chunk]
            recent = there[-newest:]
            heavy = sorted(there[:-newest], key=lambda j: -received[j])[: SIZE - newest]
            kept = sorted([*heavy, *recent])
        assert position[0, 0, :, head].tolist() == kept


def test_memory_does_not_grow_with_the_input():
    """A scan over 4 chunks and one over 64: what the compiled program needs beside its input."""
    model, eviction = small_model(), Eviction(SnapKV(window=4), repack=True)
    state = jax.eval_shape(lambda: stream.start(model, eviction, 1, size=SIZE, chunk=CHUNK))

    def read(state, chunks):
        return jax.lax.scan(lambda s, t: (stream.step(model, s, t, eviction)[1], None), state, chunks)[0]

    def needed(chunks):
        tokens = jax.ShapeDtypeStruct((chunks, 1, CHUNK), jnp.int32)
        found = jax.jit(read).lower(state, tokens).compile().memory_analysis()
        return found.temp_size_in_bytes, found.output_size_in_bytes

    assert needed(4) == needed(64) and needed(4)[0] > 0


@pytest.mark.parametrize(
    "eviction",
    [
        Eviction(SnapKV(window=8), repack=True),
        Eviction(ExpectedAttention(ahead=8), sinks=1),
        Eviction(KeyDiff(), recent=3, repack=True),
    ],
    ids=lambda e: f"{e.policy.name}-{e.repack}",
)
def test_any_policy_stays_within_its_size(eviction):
    model = small_model()
    tokens = np.concatenate([ROW, ROW[:, ::-1]])
    valid = np.ones(tokens.shape, bool)
    valid[1, 10:] = False  # the second example is short
    h, state, compiled = run(model, eviction, tokens, valid=valid)
    _, length = held(state)
    assert (length == SIZE).all() and compiled == 1 and np.isfinite(h).all()


def test_heads_may_share_a_smaller_budget():
    model = small_model()
    eviction = Eviction(KeyDiff(), allotment=ADA)
    state = stream.start(model, eviction, 1, size=SIZE, chunk=CHUNK)
    step = jax.jit(lambda s, t: stream.step(model, s, t, eviction, budget=jnp.array([6], jnp.int32)))
    for first in range(0, 24, CHUNK):
        _, state = step(state, ROW[:, first : first + CHUNK])
    _, length = held(state)
    assert length.sum(axis=2).tolist() == [[6 * KV_HEADS]] * LAYERS and length.max() <= SIZE


def test_what_cannot_stream_says_so():
    with pytest.raises(ValueError, match="'kvzip' cannot stream"):
        stream.start(small_model(), Eviction(KVzip()), 1, size=4, chunk=2)
    with pytest.raises(ValueError, match="2 sinks and the newest 3 entries do not fit into a cache of 4"):
        stream.start(small_model(), Eviction(KeyDiff(), sinks=2, recent=3), 1, size=4, chunk=2)
    stream.start(small_model(), Eviction(KeyDiff(), sinks=1, recent=3), 1, size=4, chunk=2)
    with pytest.raises(ValueError, match="'random' draws"):
        prefill_stream(small_model(), ROW, Eviction(Random()), size=4, chunk=2)
