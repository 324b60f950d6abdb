"""configs/cot_influx.py on made-up files, from `rcp train` to the report, and how its pruner draws in evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest

from rcp.cli import main
from rcp.config_file import load_config
from rcp.nn.pruner import Scores
from rcp.policies import Learned
from rcp.types import UserError
from tests.data.raw_files import write_tiny
from tests.evaluate.test_own_data import tiny_model
from tests.nn.pruning import prune
from tests.tiny import Prompt, batch_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.lax
def test_from_made_up_files_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCP_DATA_DIR", str(write_tiny(tmp_path / "raw")))
    run = tmp_path / "run"
    smaller = {
        "task.pool_size": 15,
        "task.validation_size": 6,
        "task.shots": 2,
        "model.name": tiny_model(tmp_path / "model"),
        "model.dtype": "float32",
        "data.batch_size": 2,
        "data.lengths": "[896]",
        "data.max_segments": 3,
        "data.max_answer": 64,
        "data.train_examples": 9,
        "scorer.layer": 1,
        "scorer.width": 8,
        "budget.keep_tokens": "[500]",
        "train.steps": 3,
        "parallel.devices": 1,
        "eval.examples": 4,
        "eval.batch_size": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in smaller.items()]
    assert main(["train", f"--config={ROOT}/configs/cot_influx.py", f"--workdir={run}", *flags]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert 400 < line["kept"] < 800 and 2 <= line["survived"] <= 3, "the hand-written example and one more"
        assert 0 < line["reward"] < 2 and line["skipped"] == 0

    def kept(*flags: str) -> dict[str, float]:
        arguments = [
            "eval",
            f"--workdir={run}",
            "--config.task.dataset=gsm8k",
            "--config.eval.methods=['random', 'ours']",
        ]
        assert main([*arguments, *flags]) == 0
        rows = json.loads((run / "eval" / "report.json").read_text())
        return {row["method"]: row["keep_rate_got"] for row in rows if row["metric"] == "nll"}

    drawn = kept()
    assert 0.5 < drawn["ours"] < 1 and drawn["ours"] != drawn["random"]
    exact = kept("--config.eval.draw=budget")
    assert exact["ours"] == exact["random"] == drawn["random"]


def test_the_published_variant_has_the_published_numbers() -> None:
    config = load_config(f"{ROOT}/configs/cot_influx.py:published")
    assert (config.scorer.width, config.scorer.positions, config.scorer.padding) == (512, 512, True)
    assert (config.reward.kind, config.reward.window, config.budget.keep_tokens) == ("cot_influx", 2048, (2048,))
    assert (config.data.repeats, config.task.fields["shots"], config.eval.decode) == (10, 32, 256)
    assert (config.model.name, config.model.train) == ("meta-llama/Llama-2-7b-hf", "frozen")
    with pytest.raises(UserError, match=r"unknown variant 'large'; expected one of small, published"):
        load_config(f"{ROOT}/configs/cot_influx.py:large")


BATCH = batch_of((Prompt((6, 5, 4)), Prompt((7, 4)), Prompt((6, 5, 4)), Prompt((4, 4))), 20, 3)


def masks(scores: Scores, rows: list[int], draw: Literal["sample", "likely"], seed: int = 0) -> np.ndarray:
    """What the policy keeps of these rows, by the sweep's own way: scores, then pruning without a key."""
    part, own = (jax.tree.map(lambda x: x[rows], tree) for tree in (BATCH, scores))
    policy = Learned(score=lambda batch, seen, budget: own, draw=draw, seed=seed)
    assert (policy.granularity, policy.swept) == ("independent", False)
    found = policy.scores(part, key=jax.random.key(0))
    return np.asarray(prune(found, part, np.zeros(len(rows), np.int32), "independent").keep)


def test_a_sampled_policy_keeps_what_the_sampler_draws() -> None:
    """Each example by its own key, whatever else is in the batch; another seed, another draw."""
    rng = np.random.default_rng(0)
    shapes = (BATCH.role.shape, BATCH.support.shape)
    scores = Scores(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))
    draws = np.stack([masks(scores, [0, 1, 2, 3], "sample", seed) for seed in range(12)])
    np.testing.assert_array_equal(masks(scores, [3, 2, 1, 0], "sample", 5), draws[5][::-1])
    assert len(np.unique(draws[:, 0], axis=0)) > 8
    first = (draws[:, 0] & (BATCH.segment[0] == 0)).sum(-1)
    assert set(first) <= {0, 3, 4, 5, 6}, "a shot is dropped whole or keeps its first three"
    likely = masks(scores, [0, 1, 2, 3], "likely")
    np.testing.assert_array_equal(likely, masks(scores, [0, 1, 2, 3], "likely", seed=1))
    np.testing.assert_array_equal(likely, prune(scores, BATCH, np.zeros(4, np.int32), "independent").keep)
