"""Masking equals compacting: a context with dropped entries weighing 0 and one without them give the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.eviction.compaction import candidates, compact, mask_entries, moved, needed, stepped
from rcp.eviction.prompt import read_prompt
from rcp.nn.cache import Context, as_context, for_rows, quantised, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.layers import rotate
from tests.eviction.small import KV_HEADS, LAYERS, LENGTHS, WIDTH, compacted, prompts, reads_behind, small_model

QUESTION = jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]], jnp.int32)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def read(model):
    tokens, valid = prompts()
    return jax.jit(lambda t, v: read_prompt(model, t, valid=v, chunk=8))(tokens, valid)


@pytest.fixture(scope="module")
def keep(read):
    """A third of each example's entries at random, other ones in each layer and head, and other numbers of them."""
    there = np.arange(WIDTH)[None] < np.asarray(LENGTHS)[:, None]
    chosen = np.random.default_rng(3).random((2, LAYERS, KV_HEADS, WIDTH)) < 0.35
    return jnp.asarray(chosen & there[:, None, None])


@pytest.fixture(scope="module")
def behind(model):
    """Logits of a question read behind a context."""

    @jax.jit
    def logits(context):
        h, _, _ = read_chunk(model, QUESTION, tail_of(context, 4), context=context, slots=0)
        return model.logits(h)

    return logits


def test_masking_equals_compacting(model, read, keep, behind):
    found = candidates(read.cache)
    masked = behind(mask_entries(found, keep))
    for capacities in (16, (16, 14), stepped(needed(keep), multiple=1)):
        context = compacted(found, keep, model.frequencies(), capacities=capacities)
        np.testing.assert_allclose(behind(context), masked, atol=1e-4)
    assert np.abs(behind(as_context(read.cache)) - masked).max() > 1e-2  # and dropping matters


def test_nothing_dropped_is_left(model, read, keep):
    """Each head's entries are its own, in order, with the places they had; slots behind them are empty."""
    found = candidates(read.cache)
    context = compacted(found, keep, model.frequencies(), capacities=int(needed(keep).max()))
    (run,) = context.runs
    k = np.asarray(found.k)
    for layer in range(LAYERS):
        for b in range(2):
            for head in range(KV_HEADS):
                places = np.flatnonzero(keep[b, layer, head])
                count = len(places)
                assert run.length[layer, b, head] == count
                assert run.position[layer, b, :count, head].tolist() == places.tolist()
                np.testing.assert_array_equal(run.k[layer, b, :count, head], k[layer, b, places, head])
                assert not np.any(run.k[layer, b, count:, head]) and not np.any(run.v[layer, b, count:, head])
    assert context.position.tolist() == list(LENGTHS)


def test_all_kept_is_the_whole_cache(model, read, behind):
    found = candidates(read.cache)
    everything = jnp.moveaxis(found.valid, (0, 3), (1, 2))
    whole = behind(as_context(read.cache))
    kept, repacked = (
        compacted(found, everything, model.frequencies(), capacities=WIDTH, repack=repack) for repack in (False, True)
    )
    np.testing.assert_allclose(behind(kept), whole, atol=1e-5)
    np.testing.assert_allclose(behind(repacked), whole, atol=1e-4)
    tail = model.new_cache(2, WIDTH + 4)._replace(length=read.cache.length, position=read.cache.position)
    tail = tail._replace(k=tail.k.at[:, :, :WIDTH].set(read.cache.k), v=tail.v.at[:, :, :WIDTH].set(read.cache.v))
    h, _ = jax.jit(lambda t, c: model.hidden(t, cache=c))(QUESTION, tail)  # the reading that knows no context
    np.testing.assert_allclose(model.logits(h), whole, atol=1e-4)


def test_repacked_positions(model, read, keep, behind):
    """Keys are those of the new places: turned back to place 0, old and new agree."""
    found = candidates(read.cache)
    old, new = (compacted(found, keep, model.frequencies(), capacities=16, repack=repack) for repack in (False, True))
    longest = np.asarray(keep.sum(-1).max(axis=(1, 2)))
    assert new.position.tolist() == longest.tolist()

    def unturned(run):
        angle = -run.position.astype(jnp.float32)[..., None] * model.frequencies()[None, None, None, None]
        return rotate(run.k, jnp.cos(angle), jnp.sin(angle))

    np.testing.assert_allclose(unturned(new.runs[0]), unturned(old.runs[0]), atol=1e-4)
    length, position = np.asarray(new.runs[0].length), np.asarray(new.runs[0].position)
    for layer, b, head in np.ndindex(*length.shape):
        count = length[layer, b, head]
        expected = np.arange(longest[b] - count, longest[b])
        np.testing.assert_array_equal(position[layer, b, :count, head], expected)
    assert np.abs(behind(new) - behind(old)).max() > 1e-2


@pytest.mark.parametrize("repack", [False, True])
def test_a_one_layer_model_reads_the_shorter_prompt(repack):
    """There a token's key and value depend on nothing else, so that what is left is a prompt without the dropped."""
    model = small_model(layers=1)
    tokens, valid = prompts()
    places = [[0, 1, 5, 6, 11], [0, 3, 4, 9, 13]]
    keep = np.zeros((2, 1, KV_HEADS, WIDTH), bool)
    for b, kept in enumerate(places):
        keep[b, :, :, kept] = True
    read = jax.jit(lambda t, v: read_prompt(model, t, valid=v, chunk=8))(tokens, valid)
    found = candidates(read.cache)
    context = compacted(found, jnp.asarray(keep), model.frequencies(), capacities=5, repack=repack)
    h = reads_behind(model)(context, QUESTION)
    shorter = np.concatenate([np.take_along_axis(tokens, np.asarray(places), 1), QUESTION], axis=1)
    positions = np.concatenate([places, np.asarray(LENGTHS)[:, None] + np.arange(4)], axis=1)
    expected = model.hidden(jnp.asarray(shorter), positions=None if repack else jnp.asarray(positions, jnp.int32))
    np.testing.assert_allclose(h, expected[:, 5:], atol=1e-4)


def test_context_and_tail_become_one(model, read, keep, behind):
    """Entries kept of a context, and of what was read behind it, are candidates for the next eviction."""
    context = compacted(candidates(read.cache), keep, model.frequencies(), capacities=(16, 14))
    tail = jax.jit(lambda c: read_chunk(model, QUESTION, tail_of(c, 6), context=c, slots=0)[1])(context)
    found = candidates(tail, context)
    everything = jnp.moveaxis(found.valid, (0, 3), (1, 2))
    count = np.asarray(keep.sum(-1)) + 4
    np.testing.assert_array_equal(everything.sum(-1), count)
    merged = compacted(found, everything, model.frequencies(), capacities=22)
    assert merged.position.tolist() == [n + 4 for n in LENGTHS]
    h, _, _ = read_chunk(
        model, QUESTION, tail._replace(k=jnp.pad(tail.k, PAD), v=jnp.pad(tail.v, PAD)), context=context
    )
    np.testing.assert_allclose(behind(merged), model.logits(h), atol=1e-4)


PAD = ((0, 0), (0, 0), (0, 4), (0, 0), (0, 0))


def test_capacities_come_in_steps():
    assert stepped([3, 9, 5, 4, 1, 1], multiple=4, runs=3) == (12, 12, 8, 8, 4, 4)
    assert stepped(np.array([0, 65]), multiple=64, runs=1) == (128, 128)
    with pytest.raises(ValueError, match="3 capacities for 2 layers"):
        jax.eval_shape(
            lambda cache, keep: compact(candidates(cache), keep, (1, 2, 3)),
            small_model().new_cache(1, 4),
            jnp.ones((1, 2, 2, 4), bool),
        )


def test_a_context_of_another_depth_is_refused(model):
    other: Context = as_context(small_model(layers=1).new_cache(2, 4))
    with pytest.raises(ValueError, match="1 layers, the model 2"):
        read_chunk(model, QUESTION, tail_of(as_context(model.new_cache(2, 4)), 4), context=other)


def test_runs_are_those_asked_for_whatever_slots_there_are(read):
    """Both capacities are cut to the slots: layers that later have capacities of their own are runs of their own."""
    context = compact(candidates(read.cache), jnp.ones((2, 2, 2, read.cache.capacity), bool), (1000, 2000))
    assert [run.capacity for run in context.runs] == [read.cache.capacity] * 2


def test_keys_in_eight_bits_are_not_turned_and_contexts_not_cut(model, read):
    context = as_context(read.cache)
    with pytest.raises(ValueError, match="keys in int8 cannot be turned"):
        moved(quantised(context), context.position + 1, model.frequencies())
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"{rows} rows of 2 contexts: expected a multiple"):
            for_rows(context, rows)
    assert for_rows(context, 4).position.tolist() == np.repeat(context.position, 2).tolist()


def test_a_moved_context_is_read_as_before(model, read, keep, behind):
    """Attention knows differences of positions alone; each example is moved by a number of its own."""
    context = compacted(candidates(read.cache), keep, model.frequencies(), capacities=16, repack=True)
    further = moved(context, read.cache.position, model.frequencies())
    assert further.position.tolist() == list(LENGTHS) != context.position.tolist()
    np.testing.assert_allclose(behind(further), behind(context), atol=5e-4)
    turned = np.abs(further.runs[0].k - context.runs[0].k).max(axis=(0, 2, 3, 4))
    assert (turned > 0.1).all()
    left = behind(context._replace(position=read.cache.position))  # positions alone are not enough
    assert np.abs(left - behind(context)).max() > 1e-2
