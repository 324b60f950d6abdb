"""The ranking objective is the gradient of the expected reward, by enumeration of all rankings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rcp import sampling
from rcp.objectives.eviction import draw_rankings, golden, grouped, judged, ranking, retained

SCORES = jnp.array([0.3, -0.7, 5.0, 1.1, 0.0])
USEFUL = jnp.array([0.2, 0.5, 9.0, 0.05, 0.25])
FREE = jnp.array([True, True, False, True, True])
ORDERS = np.array([[*order, 2] for order in itertools.permutations((0, 1, 3, 4))])
RANKS = np.argsort(ORDERS, axis=1)


def one_group(x):
    return x[None, None]


def log_probs(scores):
    """Of every ranking, by `rcp.sampling`."""
    logits = jnp.broadcast_to(jnp.where(FREE, scores, -jnp.inf), RANKS.shape)
    return sampling.log_prob(logits, jnp.asarray(RANKS), 4)


def rewards():
    """Share of what is useful that is kept, mean over the budgets 1 to 4, written out."""
    useful = np.asarray(USEFUL, np.float64)
    total = useful[np.asarray(FREE)].sum()
    return np.array([np.mean([useful[order[:k]].sum() / total for k in range(1, 5)]) for order in ORDERS])


def test_log_probability_and_reward_of_every_ranking():
    found = judged(jnp.asarray(ORDERS)[:, None, None], one_group(SCORES), one_group(USEFUL), one_group(FREE))
    np.testing.assert_allclose(found.log_probs.sum(axis=-1)[:, 0, 0], log_probs(SCORES), rtol=1e-5)
    np.testing.assert_allclose(found.reward[:, 0, 0], rewards(), rtol=1e-5)
    np.testing.assert_allclose(np.exp(found.log_probs.sum(axis=-1)).sum(), 1, rtol=1e-5)


def test_the_expected_gradient_is_that_of_the_expected_reward():
    """Over all pairs of rankings, since the baseline of each is the other's."""
    earned = jnp.asarray(rewards(), jnp.float32)
    expected = jax.grad(lambda scores: jnp.sum(jnp.exp(log_probs(scores)) * earned))(SCORES)
    pairs = np.array(list(itertools.product(range(24), repeat=2)))
    orders = jnp.asarray(ORDERS[pairs].swapaxes(0, 1))[:, :, None]  # [2, pairs, 1, entries]
    probability = jnp.exp(log_probs(SCORES)[pairs].sum(axis=1))

    def loss(scores):
        wide = [jnp.broadcast_to(one_group(x), (len(pairs), 1, 5)) for x in (scores, USEFUL, FREE)]
        return jnp.sum(probability * ranking(judged(orders, *wide)))

    np.testing.assert_allclose(-jax.grad(loss)(SCORES), expected, atol=1e-6)
    assert np.abs(expected).max() > 0.01


def test_drawn_rankings_are_plackett_luce():
    keys = jax.random.split(jax.random.key(0), 4000)[:, None]
    found = draw_rankings(keys, one_group(SCORES), one_group(USEFUL), one_group(FREE))
    assert np.all(np.asarray(found.order[..., -1]) == 2)
    first = np.bincount(np.asarray(found.order[:, 0, 0, 0]), minlength=5) / 4000
    np.testing.assert_allclose(first, jax.nn.softmax(jnp.where(FREE, SCORES, -jnp.inf)), atol=0.03)
    expected = float(np.sum(np.exp(np.asarray(log_probs(SCORES))) * rewards()))
    assert abs(float(found.reward.mean()) - expected) < 0.01


def test_golden_is_least_at_the_logarithm_of_the_mean_share():
    """Of contexts that look alike; the entry that is kept in any case counts for nothing."""
    useful = jnp.array([[0.2, 0.5, 9.0, 0.05, 0.25], [0.0, 0.1, 3.0, 0.8, 0.1]])
    share = jnp.where(FREE, useful, 0) / jnp.where(FREE, useful, 0).sum(axis=1, keepdims=True)
    best = jnp.log(share.mean(axis=0)) + 3.0

    def loss(scores):
        wide = jnp.broadcast_to(scores, (2, 1, 5))
        return golden(wide, useful[:, None], jnp.broadcast_to(FREE, (2, 1, 5))).mean()

    best = jnp.where(FREE, best, 7.0)
    np.testing.assert_allclose(jax.grad(loss)(best), np.zeros(5), atol=1e-6)
    assert loss(SCORES) > loss(best) > 0


def test_groups_and_what_the_best_hold():
    x = jnp.arange(24.0).reshape(1, 2, 3, 4)
    assert [grouped(x, across).shape for across in ("head", "layer", "model")] == [(1, 6, 4), (1, 2, 12), (1, 1, 24)]
    assert float(retained(one_group(USEFUL), one_group(USEFUL), one_group(FREE), 0.5)[0]) == 0.75
