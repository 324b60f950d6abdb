"""The pure steps: any mix of objectives, any split over devices, nothing frozen moves."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rcp.config import OptimConfig, ParallelConfig
from rcp.config_file import from_dict
from rcp.nn.lora import init_lora
from rcp.nn.scorer import early_features
from rcp.train.draws import Drawing, keys_of_noise, keys_of_sample
from rcp.train.networks import Networks
from rcp.train.optim import make_optimizer
from rcp.train.parallel import Parallel
from rcp.train.reader_step import make_reader_step
from rcp.train.state import TrainState, new_state
from rcp.train.step import make_pruner_step, needs_of
from rcp.types import Batch
from tests.tiny import Prompt, batch_of, tiny_model, tiny_scorer

LENGTH, SEGMENTS = 16, 4
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiles in half the time
ROWS = (
    Prompt((2, 3, 1)),
    Prompt((1, 3, 2, 3), instruction=0, support=(1, 2)),
    Prompt((2, 2), forced=((1, 0),)),
    Prompt((3, 1, 3), support=None),
)


@cache
def networks_of(kind: str) -> tuple[Networks, dict, dict]:
    """(graphs, parameters of the model, of the scorer)."""
    model, model_params = nnx.split(tiny_model(layers=1))
    scorer, scorer_params = nnx.split(tiny_scorer(kind))
    view = None if kind == "standalone" else partial(early_features, layer=1)
    return Networks(model, scorer, view, 2), nnx.to_pure_dict(model_params), nnx.to_pure_dict(scorer_params)


def set_up(values: dict, kind: str = "mlp", optimizer=None):
    """(step, state, frozen) of a configuration given as plain values."""
    config = from_dict({"optim": {"learning_rate": 0.01, "schedule": "constant"}, **values})
    networks, model, scorer = networks_of(kind)
    params, frozen = {"pruner": scorer}, {"model": model}
    if config.model.train == "lora":
        params["lora"] = init_lora(model, 2, jax.random.key(1))
    elif config.model.train == "full":
        params["model"], frozen = model, {}
    if "multiplier" in needs_of(config):
        params["dual"] = {"budget": jnp.asarray(0.1)}
    optimizer = optimizer or make_optimizer(config.optim, 10, tuple(params))
    step = make_pruner_step(config, networks, optimizer, Drawing(config, networks, lambda whole: (whole, 12)))
    aux = {"baseline": jnp.asarray(0.3)} if config.policy.baseline == "moving_average" else {}
    return step, new_state(0, params, optimizer.init(params), aux), frozen


def test_the_noise_of_the_relaxed_mask_is_that_of_no_draw():
    """Of two objectives, one relaxed and one that draws, each sees masks of its own."""
    keys = jax.random.split(jax.random.key(0), 3)
    noise = {tuple(row) for row in np.asarray(jax.random.key_data(keys_of_noise(keys))).tolist()}
    drawn = jax.vmap(partial(keys_of_sample, keys))(jnp.arange(-1, 512))  # -1: of the budgets
    assert noise.isdisjoint(map(tuple, np.asarray(jax.random.key_data(drawn)).reshape(-1, 2).tolist()))


def run(step, state: TrainState, frozen, batches):
    compiled = jax.jit(lambda state, frozen, batch: step(state, frozen, batch, axis_name=None), compiler_options=QUICK)
    rows = []
    for batch in batches:
        state, metrics = compiled(state, frozen, jax.tree.map(jnp.asarray, batch))
        rows.append({name: float(value) for name, value in metrics.items()})
    return state, rows


def changed(before, after) -> bool:
    return any(np.any(np.asarray(x) != np.asarray(y)) for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after)))


MIXES = {
    "nll, reinforce without baseline, LoRA": {
        "objectives": {"nll": 1.0, "reinforce": 1.0},
        "policy": {"samples": 1, "baseline": "none"},
        "model": {"train": "lora", "lora_rank": 2},
    },
    "kl, threshold, bce alone, token, full": {
        "objectives": {"kl": 1.0, "bce": 2.0},
        "labels": {"source": "alone"},
        "relax": {"method": "threshold", "noise": False},
        "budget": {"granularity": "token"},
        "model": {"train": "full"},
    },
    "bce leave one out, reinforce leave one out, two stages": {
        "objectives": {"bce": 1.0, "reinforce": {"weight": 3.0, "schedule": "linear", "begin": 1.0}},
        "labels": {"source": "leave_one_out"},
        "policy": {"samples": 2},
        "budget": {"granularity": "two_stage"},
    },
    "reinforce self critical": {
        "objectives": {"reinforce": 1.0},
        "policy": {"samples": 1, "baseline": "self_critical"},
    },
    "ppo moving average, entropy, token": {
        "objectives": {"ppo": 1.0, "entropy": 0.1},
        "policy": {"samples": 2, "baseline": "moving_average", "updates": 2},
        "budget": {"granularity": "token", "keep_tokens": 2},
    },
    "reinforce, independent, the reward of CoT-Influx": {
        "objectives": {"reinforce": 1.0, "entropy": 0.1},
        "policy": {"samples": 2, "baseline": "moving_average"},
        "budget": {"granularity": "independent", "keep_tokens": 2},
        "reward": {"kind": "cot_influx", "window": 4},
    },
    "nll, budget": {
        "objectives": {"nll": 1.0, "budget": 1.0},
        "relax": {"method": "sigmoid"},
        "budget": {"keep_rates": (0.25,)},
    },
}


@pytest.mark.parametrize("name", list(MIXES))
def test_every_mix_of_objectives_runs(name):
    """Finite, each term reported, what is to be trained moves; a frozen model is not even in the state."""
    values = MIXES[name]
    objectives = values["objectives"]
    step, state, frozen = set_up(values)
    train = values.get("model", {}).get("train", "frozen")
    partitions = {"lora": {"lora"}, "full": {"model"}, "frozen": set()}[train]
    assert set(state.params) == {"pruner"} | partitions | ({"dual"} if "budget" in objectives else set())
    assert set(frozen) == (set() if train == "full" else {"model"})
    after, (metrics,) = run(step, state, frozen, [batch_of(ROWS, LENGTH, SEGMENTS)])
    assert all(np.isfinite(value) for value in metrics.values())
    assert (metrics["skipped"], metrics["nonfinite_run"]) == (0, 0)
    assert after.step == 1
    for partition in state.params:
        assert changed(state.params[partition], after.params[partition])
    if "budget" in objectives:  # untrained, about half is kept: over a budget of a quarter
        assert after.params["dual"]["budget"] > state.params["dual"]["budget"]
    if {"reinforce", "ppo"} & objectives.keys():
        assert 0 <= metrics["reward"] <= 2 and 0 <= metrics["exact_match"] <= 1
        assert 1 <= metrics["kept"] <= 9 and ("survived" in metrics) == ("independent" in name)
    if "baseline" in state.aux:
        expected = 0.95 * state.aux["baseline"] + 0.05 * metrics["reward"]
        np.testing.assert_allclose(after.aux["baseline"], expected, rtol=1e-5)
    weights = {term: value if isinstance(value, float) else value["weight"] for term, value in objectives.items()}
    expected = sum(weight * metrics[term] for term, weight in weights.items())
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4, atol=1e-6)


MIX = {
    "objectives": {"ppo": 1.0, "bce": 0.5, "nll": 0.5},
    "policy": {"samples": 2, "updates": 2, "baseline": "moving_average"},
}
SGD = optax.apply_if_finite(optax.sgd(0.05), 100)  # Adam would hide a gradient that is a constant factor off


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """Three batches of eight; two rows of the first are filler, so that devices have unequal shares."""
    found = []
    for number in range(3):
        batch = batch_of(ROWS * 2, LENGTH, SEGMENTS)
        batch.index[:] += 8 * number
        found.append(batch)
    found[0].weight[:2] = 0
    return found


@pytest.fixture(scope="module")
def alone(batches):
    with jax.numpy_rank_promotion("raise"):
        return run(*set_up(MIX, optimizer=SGD), batches)


@pytest.mark.parametrize(("mode", "devices"), [("pmap", 8), ("mesh", 8)])
def test_every_split_over_devices_gives_the_same_numbers(mode, devices, batches, alone):
    """Loss, terms and parameters through three steps of plain SGD, draws and a running baseline included."""
    parallel = Parallel(ParallelConfig(mode=mode, devices=devices))
    step, state, frozen = set_up(MIX, optimizer=SGD)
    compiled = parallel.compile(step)
    state, frozen = parallel.place_state(state), parallel.place_frozen(frozen)
    for batch, expected in zip(batches, alone[1]):
        state, metrics = compiled(state, frozen, parallel.place_batch(batch))
        found = parallel.fetch(metrics)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-6, err_msg=name)
    found, expected = parallel.fetch(state), jax.tree.map(np.asarray, alone[0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5), found.params, expected.params)
    np.testing.assert_allclose(found.aux["baseline"], expected.aux["baseline"], rtol=1e-5)


def test_draws_belong_to_the_example_and_steps_that_are_not_finite_change_nothing(batches, alone):
    """Rows in another order give the same loss; a NaN in the model leaves all as it was, but for the counts."""
    step, state, frozen = set_up(MIX, optimizer=SGD)
    order = np.random.default_rng(0).permutation(8)
    _, rows = run(step, state, frozen, [jax.tree.map(lambda x: x[order], batches[0])])
    for name, value in alone[1][0].items():
        np.testing.assert_allclose(rows[0][name], value, rtol=2e-4, atol=2e-6, err_msg=name)

    broken = jax.tree.map(lambda x: x * np.nan, frozen)
    after, rows = run(step, state, broken, batches[:2])
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    np.testing.assert_array_equal(after.aux["baseline"], state.aux["baseline"])
    assert not np.isfinite(rows[0]["loss"])
    assert [(row["skipped"], row["nonfinite_run"]) for row in rows] == [(1, 1), (1, 2)]  # steps, of two updates each
    _, rows = run(step, after, frozen, batches[:1])
    assert (rows[0]["skipped"], rows[0]["nonfinite_run"]) == (0, 0)


def test_the_reader_learns_the_answers(batches):
    networks, model, _ = networks_of("mlp")
    optimizer = make_optimizer(OptimConfig(learning_rate=0.01, schedule="constant"), 10, ("model",))
    state = new_state(0, {"model": model}, optimizer.init({"model": model}))
    _, rows = run(make_reader_step(networks, optimizer), state, {}, batches[1:2] * 20)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["exact_match"] > rows[0]["exact_match"]
