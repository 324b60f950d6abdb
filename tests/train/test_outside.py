"""A reward from a model in another process: learned from, the same on one device and on eight, absent elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from rcp.config import Config, ParallelConfig
from rcp.config_file import from_dict
from rcp.train.build import build
from rcp.train.loop import run
from rcp.train.parallel import Parallel
from rcp.types import Role, UserError
from tests.endpoint.server import count, serving

pytestmark = pytest.mark.lax


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


def config_of(url: str, *, steps: int = 2, reward: dict | None = None, **endpoint) -> Config:
    """Eight problems of three statements, one of which is needed and one of which may be kept."""
    return from_dict(
        {
            "task": {
                "name": "chain",
                "segments": (3, 3),
                "test_segments": (3, 3),
                "needed": (1, 1),
                "variables": 4,
                "modulus": 4,
            },
            "data": {"batch_size": 8, "lengths": (16,), "max_segments": 3, "max_answer": 1, "train_examples": 8},
            "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 16},
            "reader": {"steps": 1},
            "scorer": {"kind": "standalone", "width": 16, "heads": 2},
            "budget": {"keep_rates": (0.34,)},
            "objectives": {"reinforce": 1.0},
            "policy": {"samples": 4},
            "optim": {"learning_rate": 0.03, "schedule": "constant"},
            "train": {"steps": steps, "log_every": 1, "checkpoint_every": steps},
            "parallel": {"devices": 1},
            "reward": {
                "likelihood": 0.0,
                "reader": "openai",
                "endpoint": {"base_url": url, "model": "solver", "retries": 0, **endpoint},
                **(reward or {}),
            },
        }
    )


def rows_of(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "reward" in row]


def test_the_reward_rises_and_each_prompt_is_paid_for_once(url: str, tmp_path: Path) -> None:
    before = count(url)
    config = config_of(url, steps=12)
    run(build(config).stages, config, tmp_path)
    rewards = [row["reward"] for row in rows_of(tmp_path)]
    assert rewards[0] < 0.6 and np.mean(rewards[-4:]) > 0.85, rewards
    assert count(url) - before <= 8 * 3, "a problem has three prompts of one statement"


def first_step(config: Config, mode: str, devices: int) -> tuple[dict, dict]:
    """Parameters and metrics after one step of the pruner's stage."""
    stages = build(config).stages
    stage, previous = stages[-1], stages[0].init_state(None).params
    parallel = Parallel(ParallelConfig(mode=mode, devices=devices))  # pyright: ignore[reportArgumentType]
    state, frozen = parallel.place_state(stage.init_state(previous)), parallel.place_frozen(stage.frozen(previous))
    batch = parallel.place_batch(next(stage.make_pipeline()))
    state, metrics = parallel.compile(stage.step)(state, frozen, batch)
    return parallel.fetch((state.params, metrics))


@pytest.fixture(scope="module")
def one_device(url: str) -> tuple[dict, dict]:
    return first_step(config_of(url), "pmap", 1)


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_eight_devices_earn_what_one_earns(url: str, one_device: tuple[dict, dict], mode: str) -> None:
    params, metrics = first_step(config_of(url), mode, 8)
    assert metrics["reward"] == pytest.approx(one_device[1]["reward"]) and 0 < metrics["reward"] < 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, one_device[0])


def lowered(config: Config) -> str:
    """The program of the pruner's step."""
    stages = build(config).stages
    previous = stages[0].init_state(None).params
    state, frozen = stages[-1].init_state(previous), stages[-1].frozen(previous)
    batch = next(stages[-1].make_pipeline())
    return jax.jit(lambda *args: stages[-1].step(*args, axis_name=None)).lower(state, frozen, batch).as_text()


def test_nothing_of_it_is_in_the_program_of_a_run_with_its_own_reader(url: str) -> None:
    configured = lowered(config_of(url, reward={"reader": "model"}))
    assert configured == lowered(config_of("", reward={"reader": "model"})) and "callback" not in configured
    asked = lowered(config_of(url))
    assert asked.count("custom_call @xla_ffi_python_cpu_callback") == 1, "once for all samples"
    both = lowered(config_of(url, reward={"likelihood": 1.0}))
    assert "callback" in both and len(both) > len(asked), "the likelihood is the own model's, which reads too"


def test_likelihoods_come_from_the_endpoint_where_it_is_asked_for_them(url: str) -> None:
    config = config_of(url, reward={"likelihood": 1.0}, logprobs=True)
    built = build(config)
    assert built.outside is not None
    batch = next(built.stages[-1].make_pipeline())
    needed = (batch.role != Role.CONTEXT) | (np.take_along_axis(batch.support, np.maximum(batch.segment, 0), 1) == 1)
    keep, weight = np.stack([needed, batch.role != Role.CONTEXT]), (np.arange(8) < 6).astype(np.float32)
    exact, nll = built.outside.judge(keep, batch.index, weight)
    np.testing.assert_array_equal(exact, [[True] * 6 + [False] * 2, [False] * 8])
    np.testing.assert_allclose(nll, [[1.0] * 6 + [0.0] * 2, [6.0] * 6 + [0.0] * 2])
    refused = build(config_of(url, reward={"likelihood": 1.0}, logprobs=True, model="base")).outside
    assert refused is not None
    with pytest.raises(UserError, match=r"config.reward.endpoint.logprobs is set, but the endpoint gives no"):
        refused.judge(keep, batch.index, weight)


def test_a_server_that_is_away_ends_the_run_and_another_goes_on_with_it(url: str, tmp_path: Path) -> None:
    away = config_of("http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"127.0.0.1:9/v1/completions: no answer .*ConnectionRefused"):
        run(build(away).stages, away, tmp_path)
    assert not any((tmp_path / "checkpoints" / "pruner").glob("[0-9]*")), "nothing is saved of such a step"
    back = config_of(url)
    assert run(build(back).stages, back, tmp_path).finished
