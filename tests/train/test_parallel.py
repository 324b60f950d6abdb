"""The same numbers from one device and eight, mapped either way; donation; batches that do not divide."""

from __future__ import annotations

import logging

import jax
import numpy as np
import optax
import pytest

from rcp.config import ParallelConfig
from rcp.train import parallel as parallel_module
from rcp.train.parallel import Parallel
from rcp.types import UserError

from .toy import ToyPipeline, toy_state, toy_step

SGD = optax.sgd(0.05)  # Adam would hide a gradient that is a constant factor off


def train(config: ParallelConfig, steps: int = 10):
    """Loss of each step, gradient norms, final parameters and noise-dependent values."""
    parallel = Parallel(config)
    step = parallel.compile(toy_step(SGD, "pruner"))
    state = parallel.place_state(toy_state(SGD))
    frozen = parallel.place_frozen({"scale": np.float32(1.5)})
    pipeline = ToyPipeline()
    rows = []
    for _ in range(steps):
        state, metrics = step(state, frozen, parallel.place_batch(next(pipeline)))
        rows.append(parallel.fetch(metrics))
    return rows, parallel.fetch(state)


@pytest.fixture(scope="module")
def alone():
    with jax.numpy_rank_promotion("raise"):
        return train(ParallelConfig(mode="pmap", devices=1))


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(mode="pmap", devices=8),
        ParallelConfig(mode="mesh", devices=1),
        ParallelConfig(mode="mesh", devices=8),
    ],
    ids=["pmap8", "mesh1", "mesh8"],
)
def test_every_mode_gives_the_numbers_of_one_device(config, alone):
    """Loss, gradient and parameters through ten steps of plain SGD, per-example noise included."""
    rows, state = train(config)
    for row, expected in zip(rows, alone[0], strict=True):
        np.testing.assert_allclose(row["loss"], expected["loss"], rtol=2e-5)
        np.testing.assert_allclose(row["grad_norm"], expected["grad_norm"], rtol=2e-5)
    np.testing.assert_allclose(state.params["pruner"]["w"], alone[1].params["pruner"]["w"], rtol=1e-5, atol=1e-6)
    assert state.step == 10


def test_the_toy_learns(alone):
    assert alone[0][-1]["loss"] < 0.5 * alone[0][0]["loss"]


def test_sharded_parameters_are_split_and_give_the_same_numbers(alone, monkeypatch):
    monkeypatch.setattr(parallel_module, "SHARD_FROM", 4)
    config = ParallelConfig(mode="mesh", devices=5, shard_params=True)  # 5 features over 5 devices
    parallel = Parallel(config)
    placed = parallel.place_state(toy_state(SGD))
    assert placed.params["pruner"]["w"].addressable_data(0).shape == (1,)
    with pytest.raises(UserError, match="16 cannot be split over 5"):
        train(config)
    step = parallel.compile(toy_step(SGD, "pruner"))
    pipeline = ToyPipeline(batch=20)
    state, _ = step(placed, parallel.place_frozen({"scale": np.float32(1.5)}), parallel.place_batch(next(pipeline)))
    assert state.params["pruner"]["w"].addressable_data(0).shape == (1,)
    single = Parallel(ParallelConfig(devices=1))
    other, _ = single.compile(toy_step(SGD, "pruner"))(
        single.place_state(toy_state(SGD)),
        single.place_frozen({"scale": np.float32(1.5)}),
        single.place_batch(next(ToyPipeline(batch=20))),
    )
    np.testing.assert_allclose(
        parallel.fetch(state).params["pruner"]["w"], single.fetch(other).params["pruner"]["w"], rtol=1e-5
    )


def test_what_several_processes_share_is_gathered_by_one_program(monkeypatch, caplog):
    """Fetched again, nothing is compiled again."""
    monkeypatch.setattr(parallel_module, "SHARD_FROM", 4)
    parallel = Parallel(ParallelConfig(mode="mesh", devices=5, shard_params=True))
    parallel.processes = 2  # of which this one has all devices
    given = toy_state(SGD)
    placed = parallel.place_state(given)
    first = parallel.fetch(placed)
    jax.tree.map(np.testing.assert_array_equal, first, jax.tree.map(np.asarray, given))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        parallel.fetch(placed)
        assert not caplog.records
        parallel.fetch(placed.params)
        assert any("Compiling" in line for line in caplog.messages)  # so it would have been seen


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_the_state_is_donated_and_what_was_given_stays_valid(mode):
    parallel = Parallel(ParallelConfig(mode=mode, devices=2))
    given = jax.tree.map(np.asarray, toy_state(SGD))
    before = jax.tree.map(np.copy, given)
    placed = parallel.place_state(given)
    frozen = parallel.place_frozen({"scale": np.float32(1)})
    first = parallel.fetch(placed)
    state, _ = parallel.compile(toy_step(SGD, "pruner"))(placed, frozen, parallel.place_batch(next(ToyPipeline())))
    assert placed.params["pruner"]["w"].is_deleted()
    assert not state.params["pruner"]["w"].is_deleted()
    assert not frozen["scale"].is_deleted()
    for copy in (given, first):  # neither the source nor a fetched copy shares memory with what was donated
        jax.tree.map(np.testing.assert_array_equal, copy, before)


def test_pmap_gives_each_device_its_own_rows_in_order():
    parallel = Parallel(ParallelConfig(devices=8))
    placed = parallel.place_batch(np.arange(16, dtype=np.int32))
    assert placed.shape == (8, 2)
    assert [np.asarray(shard.data).tolist() for shard in placed.addressable_shards][3] == [[6, 7]]


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_a_batch_that_does_not_divide_is_an_error(mode):
    parallel = Parallel(ParallelConfig(mode=mode, devices=8))
    with pytest.raises(UserError, match=r"a batch of 12 cannot be split over 8 devices.*config.data.batch_size"):
        parallel.place_batch(next(ToyPipeline(batch=12)))


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(UserError, match=r"config.parallel.devices is 64, but this machine has 8"):
        Parallel(ParallelConfig(devices=64))
