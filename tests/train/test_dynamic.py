"""Training dynamic context pruning: the loss, the schedule, a run that stops and goes on, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rcp.config import Config
from rcp.config_dynamic import DynamicConfig
from rcp.config_file import from_dict, load_config
from rcp.infer.dynamic import DynamicModel
from rcp.infer.trained_dynamic import load_dynamic
from rcp.train.build import stages_of
from rcp.train.dynamic_step import alpha_at
from rcp.train.loop import run
from rcp.types import UserError

TEXT = "".join(f"Ann has {n} pens and buys {n % 7} more. How many has she? She has {n + n % 7}. " for n in range(160))


def config_of(folder: Path, **sections) -> Config:
    path = folder / "text.txt"
    path.write_text(TEXT)
    values = {
        "task": {"name": "long_text", "path": str(path), "tokens": 48, "answer_tokens": 16, "recent": 8},
        "data": {"batch_size": 2, "lengths": (48,), "max_segments": 8, "max_answer": 16},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 16},
        "dynamic": {"on": True, "rank": 4, "gamma": 1.0, "beta": 0.0},
        "optim": {"learning_rate": 3e-2},
        "train": {"steps": 8, "log_every": 1, "checkpoint_every": 4},
        "parallel": {"devices": 1},
    }
    values["task"]["characters"] = True
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return from_dict(values)


def test_alpha_goes_up_by_a_cosine_and_stays():
    config = DynamicConfig(alpha_steps=100)
    alphas = [float(alpha_at(config, 1000, step)) for step in (0, 25, 50, 75, 100, 900)]
    np.testing.assert_allclose(
        alphas, [1, 1 + 7 * (1 - 0.5**0.5) / 2, 4.5, 1 + 7 * (1 + 0.5**0.5) / 2, 8, 8], rtol=1e-6
    )
    assert float(alpha_at(DynamicConfig(), 10, 5)) == pytest.approx(4.5)  # 0 steps: the whole run


def test_a_run_that_stops_goes_on_as_if_it_had_not_and_is_used(tmp_path):
    half = config_of(tmp_path, train={"steps": 4}, dynamic={"alpha_steps": 8}, optim={"schedule": "constant"})
    full = config_of(tmp_path, dynamic={"alpha_steps": 8}, optim={"schedule": "constant"})
    run(stages_of(half), half, tmp_path / "parts")
    resumed = run(stages_of(full), full, tmp_path / "parts")
    straight = run(stages_of(full), full, tmp_path / "straight")
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, straight.state.params)
    assert set(straight.state.params) == {"pruner", "model"}

    trained = load_dynamic(tmp_path / "parts")
    assert trained.step == 8 and trained.weights is None
    model = DynamicModel(trained.model, trained.interaction, chunk=16, multiple=16)
    prompt = trained.tokenizer.encode("Ann has 3 pens and buys 3 more.")
    assert len(model.answer([prompt], max_new=4)[0]) == 4


def test_the_weight_of_what_is_left_makes_less_be_left(tmp_path):
    """And the loss is the sum of the two parts."""
    left = {}
    for gamma in (0.0, 20.0):
        config = config_of(tmp_path, dynamic={"gamma": gamma, "alpha_end": 1.0}, train={"steps": 16})
        run(stages_of(config), config, tmp_path / f"gamma{gamma}")
        rows = [json.loads(line) for line in (tmp_path / f"gamma{gamma}" / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            assert row["loss"] == pytest.approx(row["nll"] + gamma * row["kept"], rel=1e-5)
        left[gamma] = rows[-1]["kept"]
    assert left[20.0] < 0.7 * left[0.0]


def test_what_cannot_be_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config.dynamic.alpha_begin should be 1 or more, not 0.5"):
        config_of(tmp_path, dynamic={"alpha_begin": 0.5})
    with pytest.raises(UserError, match=r"config.dynamic.alpha_end should be at least dynamic.alpha_begin, not 0.9"):
        config_of(tmp_path, dynamic={"alpha_end": 0.9})
    tasks = {"x": {"name": "needle", "tokens": 64}}
    with pytest.raises(UserError, match=r"config.dynamic.on should be false where eviction.tasks is set, not True"):
        config_of(tmp_path, eviction={"tasks": tasks, "objectives": {"golden": 1.0}})
    with pytest.raises(UserError, match=r"\"scratch\", but the task long_text brings no tokenizer"):
        stages_of(config_of(tmp_path, task={"characters": False}))
    with pytest.raises(UserError, match=r"holds no run \(no config.json\); train one: rcp train --config=configs/dyn"):
        load_dynamic(tmp_path / "nothing")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a run of another kind \(config.dynamic.on is false\)"):
        load_dynamic(other)


@pytest.mark.parametrize("variant", ["lora", "smollm2", "frozen", "scratch"])
def test_the_config_file_has_its_variants(variant):
    config = load_config(Path(__file__).parents[2] / f"configs/dynamic.py:{variant}")
    assert config.dynamic.on and config.dynamic.alpha_steps < config.train.steps
