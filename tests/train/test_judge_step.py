"""Draws that are judged once: the table holds what fresh draws would be, and learning from it raises what earned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcp.config_file import from_dict
from rcp.nn import pruner
from rcp.nn.pruner import Pruned
from rcp.train.draws import Drawing, keys_of
from rcp.train.judge_step import drawn_of, empty_log, make_judge_step
from rcp.train.networks import Params
from rcp.train.optim import make_optimizer
from rcp.train.state import new_state
from rcp.train.step import make_pruner_step
from rcp.train.table import looked_up
from rcp.types import UserError
from tests.tiny import batch_of
from tests.train.test_step import LENGTH, QUICK, ROWS, SEGMENTS, networks_of, run

SAMPLES = 6


def config_of(**sections):
    values = {
        "objectives": {"ppo": 1.0},
        "policy": {"samples": SAMPLES, "logged": True, "updates": 2},
        "budget": {"keep_tokens": (2, 3), "cut": "beginning"},
        "data": {"train_examples": len(ROWS), "max_segments": SEGMENTS},
        "optim": {"learning_rate": 0.02, "schedule": "constant"},
    }
    return from_dict({name: {**values.get(name, {}), **sections.get(name, {})} for name in {**values, **sections}})


@pytest.fixture(scope="module")
def judged():
    """(drawing, batch, what the judge stage's step was given, its state after the one batch, its metrics)."""
    config = config_of()
    networks, model, scorer = networks_of("mlp")
    drawing = Drawing(config, networks, lambda whole: (whole, 12))
    frozen = {"model": model, "pruner": scorer}
    batch = jax.tree.map(jnp.asarray, batch_of(ROWS, LENGTH, SEGMENTS))
    before = new_state(7, {"logged": empty_log(config)}, ())
    after, metrics = run(make_judge_step(config, drawing), before, frozen, [batch])
    return drawing, batch, (before, frozen), after, metrics[0]


def test_the_table_holds_the_draws_of_the_scorer_and_what_they_earned(judged):
    drawing, batch, (before, frozen), after, metrics = judged
    keys = keys_of(before, batch)
    budget = drawing.budgets(batch, keys)
    scores = drawing.networks.score(frozen, batch, drawing.networks.features({}, frozen, batch), budget)
    expected = jax.jit(drawing.draw, compiler_options=QUICK)({}, frozen, batch, scores, budget, keys)
    rows = looked_up(after.params["logged"], batch)
    found, asked = drawn_of(rows, drawing, batch)
    np.testing.assert_array_equal(asked, budget)
    for name in Pruned._fields:  # the mask of the order, forced tokens and cut segments in it
        np.testing.assert_array_equal(getattr(found.pruned, name), getattr(expected.pruned, name), err_msg=name)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, rtol=1e-5)
    np.testing.assert_allclose(found.reward, expected.reward, rtol=1e-4)
    np.testing.assert_array_equal(found.exact, expected.exact)
    assert len({tuple(order) for order in np.asarray(found.pruned.segment_rank)[:, 1].tolist()}) > 1
    assert metrics["reward"] == pytest.approx(float(expected.reward.mean()), rel=1e-4)


def test_learning_from_the_table_raises_the_draws_that_earned(judged):
    """Without a reading: the model's parameters may be anything then."""
    drawing, batch, (_, frozen), after, _ = judged
    config, networks = drawing.config, drawing.networks
    optimizer = make_optimizer(config.optim, 10, ("pruner",))
    step = make_pruner_step(config, networks, optimizer, drawing)
    features = networks.features({}, frozen, batch)
    held = {"model": frozen["model"], "states": {"features": features}, "logged": after.params["logged"]}
    broken = {**held, "model": jax.tree.map(lambda x: x * jnp.nan, held["model"])}
    params = {"pruner": frozen["pruner"]}
    start = new_state(0, params, optimizer.init(params))
    state, rows = run(step, start, broken, [batch] * 12)
    assert not any(row["skipped"] for row in rows)
    assert rows[0]["reward"] == pytest.approx(rows[-1]["reward"])  # the same draws
    drawn, budget = drawn_of(looked_up(held["logged"], batch), drawing, batch)

    def log_prob(params: Params) -> np.ndarray:
        scores = networks.score(params, batch, features, budget)
        return np.asarray(jax.vmap(lambda p: pruner.log_prob(scores, batch, p, granularity="segment"))(drawn.pruned))

    moved = log_prob(state.params) - log_prob(start.params)
    advantage = np.asarray(drawn.reward) - np.asarray(drawn.reward).mean(axis=0)
    assert np.sum(moved * advantage) > 0 and np.abs(moved).max() > 0.05


def test_logged_draws_ask_for_what_makes_them_possible():
    for sections, message in (
        ({"objectives": {"bce": 1.0, "ppo": 0.0}}, None),
        ({"policy": {"updates": 1}, "warm_start": {"steps": 1, "objectives": {"reinforce": 1.0}}}, None),  # draws anew
        (
            {"objectives": {"ppo": 1.0, "reinforce": 0.1}},
            r'config.policy.logged should be false with the objective "reinforce", to which logged draws .*\(use ppo\)',
        ),
        ({"budget": {"granularity": "token"}}, r'config.budget.granularity should be "segment" where policy.logged'),
        ({"policy": {"baseline": "self_critical"}}, r"config.policy.baseline should be another where policy.logged"),
        ({"data": {"train_examples": None}}, r"config.data.train_examples should be a number where policy.logged"),
        ({"model": {"train": "full"}}, r'config.model.train should be "frozen" where policy.logged'),
        (
            {"warm_start": {"steps": 1, "objectives": {"ppo": 1.0}}},
            r'config.warm_start.objectives should be without "ppo" where policy.logged',
        ),
    ):
        if message is None:
            config_of(**sections)
        else:
            with pytest.raises(UserError, match=message):
                config_of(**sections)
    with pytest.raises(UserError, match=r'config.policy.logged should be false but with the objective "ppo"'):
        from_dict({"objectives": {"reinforce": 1.0}, "policy": {"logged": True}, "data": {"train_examples": 4}})
