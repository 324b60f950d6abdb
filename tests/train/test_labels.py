"""Keep-labels against a plain loop over prompts written without, or with only, one segment."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.config import LabelConfig
from rcp.data.pack import collate
from rcp.nn.gains import gains_beside, gains_of_tokens, gains_within
from rcp.nn.layout import segment_exists
from rcp.nn.pruner import compact
from rcp.nn.reader import Reading
from rcp.nn.reader import read as read_prompts
from rcp.train.labels import keep_labels, segment_gains
from rcp.types import Batch, Role
from tests.tiny import Prompt, batch_of, encode_prompt, tiny_model

LENGTH, SEGMENTS = 20, 5
ROWS = (Prompt((2, 3, 1)), Prompt((1, 3, 2, 3), instruction=0, question=3, support=(1, 3)), Prompt((2,), support=None))
TABLE = np.random.default_rng(0).normal(size=24).astype(np.float32)


def read(batch: Batch) -> Reading:
    """A stand-in for the model: any function of the tokens in their order that padding does not enter."""
    there = batch.role != Role.PAD
    place = jnp.cumsum(there, axis=1, dtype=jnp.int32).astype(jnp.float32)
    nll = jnp.sum(jnp.where(there, jnp.asarray(TABLE)[batch.tokens] * jnp.cos(place), 0.0), axis=1)
    count = jnp.ones(nll.shape, jnp.int32)
    return Reading(jnp.square(nll), count, count > 0, nll[:, None, None], there[:, :1])


def masked(keep):
    raise AssertionError("only the labels of tokens read through a mask")


def naive_gains(alone: bool) -> np.ndarray:
    gains = np.full((len(ROWS), SEGMENTS), np.nan)
    for row, prompt in enumerate(ROWS):
        example = encode_prompt(prompt, row)
        for s in range(len(prompt.segments)):
            kept = [s] if alone else [t for t in range(len(prompt.segments)) if t != s]
            short = replace(
                example,
                context=tuple(example.context[t] for t in kept),
                forced=tuple(example.forced[t] for t in kept),
                support=example.support[kept],
            )
            nll = float(read(jax.tree.map(jnp.asarray, collate([short], LENGTH, SEGMENTS, 1))).nll[0])
            gains[row, s] = -nll if alone else nll
    return gains


@pytest.mark.parametrize("alone", [True, False])
def test_gains_and_labels_equal_a_plain_loop(alone):
    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, LENGTH, SEGMENTS))
    expected = naive_gains(alone)
    there = np.isfinite(expected)
    np.testing.assert_array_equal(segment_exists(batch), there)
    none = jnp.zeros(batch.role.shape, bool)
    gains = jax.jit(lambda b: gains_beside(none, b, read, 12) if alone else gains_within(b, read))(batch)
    np.testing.assert_allclose(np.asarray(gains)[there], expected[there], rtol=1e-4, atol=1e-5)

    config = LabelConfig("alone" if alone else "leave_one_out", sharpness=3.0, above=0.5)
    found = jax.jit(lambda b: keep_labels(config, b, segment_gains(config, b, read, 12), masked))(batch)
    labels = np.asarray(found.segments)
    for row in range(2):  # the third has a single segment, whose gain has nothing to stand out from
        values = expected[row, there[row]]
        standard = (values - values.mean()) / values.std()
        np.testing.assert_allclose(labels[row, there[row]], 1 / (1 + np.exp(-3 * (standard - 0.5))), rtol=1e-3)
    assert (labels[~there] == -1).all() and (labels[2] == -1).all()


def test_gains_that_do_not_differ_label_nothing():
    """They would all get sigmoid(-sharpness * above), as if nothing were to be kept."""
    batch = jax.tree.map(jnp.asarray, batch_of((*ROWS[:2], ROWS[2], ROWS[1]), LENGTH, SEGMENTS))
    gains = np.zeros((4, SEGMENTS), np.float32)
    gains[0, :3] = 7.3 + np.asarray([0, 1e-6, -1e-6], np.float32)  # equal but for rounding
    gains[1, :4] = np.asarray([0, 2e-4, -1e-4, 0], np.float32)  # of a reader that is sure of its answer
    gains[2, 0] = 7.3
    gains[3, :4] = -0.2
    labels = np.asarray(keep_labels(LabelConfig("alone"), batch, jnp.asarray(gains), masked).segments)
    assert (labels[[0, 2, 3]] == -1).all()
    z = (gains[1, :4] - gains[1, :4].mean()) / gains[1, :4].std()
    np.testing.assert_allclose(labels[1, :4], 1 / (1 + np.exp(-4 * (z - 1))), rtol=1e-3)


def test_tokens_of_a_single_segment_keep_their_labels():
    batch = jax.tree.map(jnp.asarray, batch_of((Prompt((4,)), Prompt((1,))), LENGTH, SEGMENTS))
    weight = jnp.arange(LENGTH, dtype=jnp.float32)
    found = keep_labels(LabelConfig("tokens"), batch, None, lambda keep: keep @ weight)
    assert found.tokens is not None and (np.asarray(found.segments) == -1).all()
    context = np.asarray(batch.role) == Role.CONTEXT
    known = np.asarray(found.tokens) >= 0
    np.testing.assert_array_equal(known[0], context[0])
    assert not known[1].any()


def test_prompts_are_read_at_the_least_of_a_few_lengths():
    """Those read together are one of each example, the shortest first; what is read does not hang on the padding."""
    rows = (Prompt((100, 3, 30)), Prompt((2, 90, 20)))
    length = 4 + 100  # instruction, question and answer, and the longest segment
    batch = jax.tree.map(jnp.asarray, batch_of(rows, 4 + 133, 3))
    none = jnp.zeros(batch.role.shape, bool)

    def width(prompts: Batch) -> Reading:
        found = read(prompts)
        return found._replace(nll_sum=jnp.full(found.nll.shape, float(prompts.tokens.shape[1])))

    widths = -np.asarray(jax.jit(lambda b: gains_beside(none, b, width, length))(batch))
    np.testing.assert_array_equal(widths, [[104, 32, 64], [32, 104, 64]])
    gains = jax.jit(lambda b: gains_beside(none, b, read, length))(batch)
    for segment in range(3):
        kept = (batch.role != Role.CONTEXT) | (batch.segment == segment)
        np.testing.assert_allclose(gains[:, segment], -read(compact(batch, kept, length)).nll, rtol=1e-4)


def test_the_task_labels_are_taken_as_they_are():
    batch = batch_of(ROWS, LENGTH, SEGMENTS)
    assert segment_gains(LabelConfig("support"), batch, read, 12) is None
    labels, tokens = keep_labels(LabelConfig("support"), jax.tree.map(jnp.asarray, batch), None, masked)
    assert tokens is None
    np.testing.assert_array_equal(labels, [[1, 0, 0, -1, -1], [0, 1, 0, 1, -1], [-1] * 5])
    assert labels.dtype == jnp.float32


def test_the_gains_of_tokens_are_the_slope_of_leaving_them_out():
    """Against finite differences of the NLL in each token's weight, read by a real decoder."""
    batch, model = jax.tree.map(jnp.asarray, batch_of(ROWS, LENGTH, SEGMENTS)), tiny_model()
    nll = jax.jit(lambda keep: read_prompts(model, batch, max_answer=2, keep=keep).nll)
    gains = np.asarray(jax.jit(lambda: gains_of_tokens(batch, nll))())
    context, ones = np.asarray(batch.role) == Role.CONTEXT, np.ones((len(ROWS), LENGTH), np.float32)
    assert not gains[~context].any() and (gains[context] != 0).all()
    for row, place in zip(*np.nonzero(context)):
        less, more = ones.copy(), ones.copy()
        less[row, place], more[row, place] = 0.95, 1.05
        slope = (nll(less)[row] - nll(more)[row]) / 0.1
        np.testing.assert_allclose(gains[row, place], slope, rtol=0.02, atol=1e-4)

    config = LabelConfig("tokens", sharpness=2.0, above=0.0)
    labels = jax.jit(lambda: keep_labels(config, batch, None, nll))()
    assert labels.tokens is not None
    for row in range(len(ROWS)):
        own = gains[row, context[row]]
        ranks = np.asarray(labels.tokens)[row, context[row]]
        np.testing.assert_array_equal(np.argsort(ranks), np.argsort(own))
        assert ((ranks > 0.5) == (own > own.mean())).all()
    assert (np.asarray(labels.tokens)[~context] == -1).all()
    known = np.asarray(labels.segments) >= 0
    np.testing.assert_array_equal(known, segment_exists(batch) & (np.arange(len(ROWS)) < 2)[:, None])
