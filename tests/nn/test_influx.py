"""CoT-Influx's scorer: its published size and start, what it sees, and the states it sees it in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from rcp.nn import layout
from rcp.nn.influx import InfluxConfig, InfluxScorer, KeepMLP, shot_states
from rcp.types import Role
from tests.tiny import Prompt, batch_of, tiny_model

BATCH = batch_of((Prompt((2, 5, 3)), Prompt((4, 1), instruction=0)), 16, 3)
PIECES = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
POSITIONS = 8


def states() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (*BATCH.role.shape, 16))


def test_the_published_number_of_parameters_of_each():
    """528,898 with the 1,024 dimensions of BERT-large."""
    scorer = nnx.eval_shape(lambda: InfluxScorer(InfluxConfig(1024), nnx.Rngs(0)))
    for part in (scorer.shots, scorer.tokens):
        assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(part))) == 528_898


def test_everything_is_first_kept_with_probability_088():
    mlp = KeepMLP(1024, 512, nnx.Rngs(0))
    assert np.std(np.asarray(mlp.last[...])) == pytest.approx(0.02, rel=0.1)
    np.testing.assert_array_equal(mlp.last_bias[...], [[1, -1]])
    keep = np.asarray(jax.nn.sigmoid(mlp(jax.random.normal(jax.random.key(1), (50, 1024)))))
    assert keep.mean() == pytest.approx(0.88, abs=0.04)


def test_an_mlp_is_what_the_paper_writes():
    rng = np.random.default_rng(0)
    mlp = KeepMLP(6, 4, nnx.Rngs(0))
    for leaf in (mlp.scale_in, mlp.shift_in, mlp.first_bias, mlp.scale, mlp.shift):
        leaf[...] = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)

    def norm(x, scale, shift):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift

    x = rng.normal(size=(5, 6))
    p = {name: np.asarray(leaf[...]) for name, leaf in nnx.state(mlp).items()}  # pyright: ignore[reportArgumentType]
    hidden = norm(norm(x, p["scale_in"], p["shift_in"]) @ p["first"] + p["first_bias"], p["scale"], p["shift"])
    gelu = hidden * 0.5 * (1 + special.erf(hidden / np.sqrt(2)))
    keep, drop = (gelu @ p["last"] + p["last_bias"]).T
    np.testing.assert_allclose(mlp(jnp.asarray(x, jnp.float32)), keep - drop, atol=1e-5)


@pytest.mark.parametrize("padding", [True, False])
def test_a_shots_logit_is_the_mean_over_its_positions(padding):
    scorer, features = InfluxScorer(InfluxConfig(16, 8, POSITIONS, padding), nnx.Rngs(0)), states()
    scorer.shots.last[...] *= 50
    scorer.shots.shift[...] += 1.0  # so that a padded position has an opinion of its own
    found = scorer(BATCH, features)
    for row, sizes in enumerate(((2, 5, 3), (4, 1))):
        for segment, size in enumerate(sizes):
            own = features[row][BATCH.segment[row] == segment]
            whole = jnp.pad(own, ((0, POSITIONS - size), (0, 0))) if padding else own
            expected = scorer.shots(whole).mean()
            np.testing.assert_allclose(found.segments[row, segment], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.tokens, scorer.tokens(features), rtol=1e-5)


def test_a_shot_longer_than_its_positions_is_not_padded():
    scorer = InfluxScorer(InfluxConfig(16, 8, positions=2), nnx.Rngs(0))
    without = InfluxScorer(InfluxConfig(16, 8, padding=False), nnx.Rngs(0))
    features = states()
    np.testing.assert_allclose(
        scorer(BATCH, features).segments[0], without(BATCH, features).segments[0], rtol=1e-4, atol=1e-5
    )


def test_each_shot_is_read_by_itself():
    """The states of a shot are those of a prompt that is nothing but the shot; nothing else of the prompt matters."""
    model = tiny_model()
    read = jax.jit(lambda batch: shot_states(model, batch, 1, POSITIONS))
    found = np.asarray(read(BATCH))
    inside = [BATCH.segment[row] == segment for row, segment in PIECES]
    shots = np.stack([np.pad(BATCH.tokens[row][own], (0, 8 - own.sum())) for (row, _), own in zip(PIECES, inside)])
    alone = model.hidden(jnp.asarray(shots), lengths=jnp.asarray([own.sum() for own in inside], jnp.int32), stop=1)
    for number, ((row, _), own) in enumerate(zip(PIECES, inside)):
        np.testing.assert_allclose(found[row][own], alone[number, : own.sum()], atol=1e-5)
    np.testing.assert_array_equal(found[np.asarray(BATCH.role != Role.CONTEXT)], 0)

    tokens = np.where((BATCH.segment == 1) | (BATCH.role == Role.QUESTION), 3, BATCH.tokens).astype(np.int32)
    other = np.asarray(read(BATCH._replace(tokens=tokens)))
    same = (BATCH.role == Role.CONTEXT) & (BATCH.segment != 1)
    np.testing.assert_allclose(other[same], found[same], atol=1e-6)


def test_what_is_past_the_positions_of_a_shot_is_not_read():
    model = tiny_model()
    found = np.asarray(shot_states(model, BATCH, 1, 3))
    beyond = (BATCH.role == Role.CONTEXT) & (np.asarray(layout.places(BATCH)) >= 3)
    assert beyond.sum() == 3
    np.testing.assert_array_equal(found[beyond], 0)
    assert np.abs(found[(BATCH.role == Role.CONTEXT) & ~beyond]).min(-1).max() > 0


def test_it_needs_states():
    with pytest.raises(ValueError, match="scorer needs features"):
        InfluxScorer(InfluxConfig(16), nnx.Rngs(0))(BATCH)
