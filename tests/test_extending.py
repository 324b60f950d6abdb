"""What docs/extending.md says to add is enough: its code runs, and works where it is registered."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp import config_check
from rcp.config_file import from_dict
from rcp.data.tasks import TASKS, Task
from rcp.evaluate.run import evaluate
from rcp.evaluate.tables import read_results
from rcp.infer.context import ContextModel
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.objectives import OBJECTIVES
from rcp.policies import POLICIES
from rcp.train import build as build_module
from rcp.train.build import build
from rcp.train.loop import run
from rcp.train.prepare_step import PREPARED
from tests.data.test_pack import Bytes
from tests.eviction.small import KV_HEADS, LAYERS, small_model

pytestmark = pytest.mark.lax
TEXT = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def added() -> dict[str, Any]:
    """The names that the document's code defines."""
    names: dict[str, Any] = {"__name__": "extending"}
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(compile(block, "docs/extending.md", "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def registered(added, monkeypatch):
    """Task, objective and comparison by their names, for a small reader of bytes."""
    monkeypatch.setitem(TASKS, "lockers", added["Lockers"])
    monkeypatch.setitem(OBJECTIVES, "ranknet", added["RANKNET"])
    monkeypatch.setattr(config_check, "OBJECTIVES", tuple(OBJECTIVES))
    monkeypatch.setitem(POLICIES, "longest", added["Longest"])
    monkeypatch.setattr(config_check, "METHODS", tuple(POLICIES))
    shape = TransformerConfig(
        vocab_size=Bytes.vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16
    )
    loaded = SimpleNamespace(model=Transformer(shape, rngs=nnx.Rngs(0)), tokenizer=Bytes(), fingerprint="small")
    monkeypatch.setattr(build_module, "load", lambda *_, **__: loaded)


def test_task_objective_and_comparison_are_trained_and_evaluated(registered, tmp_path):
    config = from_dict(
        {
            "task": {"name": "lockers", "people": 3},
            "data": {"batch_size": 4, "lengths": (160,), "max_segments": 3, "max_answer": 4, "train_examples": 8},
            "model": {"name": "some/model"},
            "scorer": {"kind": "linear", "layer": 1},
            "objectives": {"ranknet": 1.0},
            "optim": {"learning_rate": 0.1},
            "train": {"steps": 30, "log_every": 1, "checkpoint_every": 30},
            "parallel": {"devices": 1},
            "eval": {"methods": ("longest", "ours"), "keep_rates": (0.5,), "examples": 4, "batch_size": 4},
        }
    )
    assert run(build(config).stages, config, tmp_path).finished
    losses = [float(re.findall(r'"ranknet": ([\d.]+)', row)[0]) for row in _rows(tmp_path)]
    assert losses[0] == pytest.approx(np.log(2), abs=0.05) and np.mean(losses[-4:]) < 0.8 * losses[0]
    evaluate(tmp_path)
    results = read_results(tmp_path / "eval" / "results.npz")
    assert [name for name, _ in results.settings] == ["longest", "ours"]
    np.testing.assert_array_equal(results.kept, np.floor(results.context * 0.5 + 1e-4)[None].repeat(2, axis=0))


def test_labels_are_computed_once_for_an_objective_that_needs_them(registered):
    prepared = {"data": {"train_examples": 8}, "train": {"prepare": True}, "labels": {"source": "alone"}}
    config = from_dict(prepared | {"objectives": {"ranknet": 1.0}})
    assert [table.name for table in PREPARED if table.used(config)] == ["labels"]
    assert not any(table.used(from_dict(prepared | {"objectives": {"ppo": 1.0}})) for table in PREPARED)


def _rows(workdir: Path) -> list[str]:
    return (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_the_task_is_one_and_decides_its_examples(added):
    task, again = added["Lockers"](), added["Lockers"]()
    assert isinstance(task, Task)
    examples = task.examples("test", 20)
    assert [example == again.examples("test")[i] for i, example in enumerate(examples)] == [True] * 20
    for example in examples:
        (needed,) = example.support
        assert task.check(example.answer, example) and example.answer.strip() in example.context[needed]
        assert not task.check(" 100.", example)
    assert not {example.question for example in examples} & {e.question for e in task.examples("train", 99)}


def test_the_objective_is_the_mean_over_pairs_and_zero_without_any(added):
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=(3, 5)).astype(np.float32), rng.uniform(size=(3, 5)).astype(np.float32)
    label[1, 3:], label[2] = -1.0, 0.5
    outcome = SimpleNamespace(labels=SimpleNamespace(segments=jnp.asarray(label)), segment_scores=jnp.asarray(score))
    found = jax.jit(lambda s: added["ranknet"](SimpleNamespace(**{**vars(outcome), "segment_scores": s}), None))(score)
    for row in range(3):
        pairs = [(i, j) for i in range(5) for j in range(5) if label[row, i] > label[row, j] >= 0]
        losses = [np.log1p(np.exp(score[row, j] - score[row, i])) for i, j in pairs]
        assert float(found[row]) == pytest.approx(np.mean(losses) if losses else 0.0, rel=1e-5)


def test_the_eviction_policy_is_used_unregistered_and_holds_the_budget(added):
    v = np.random.default_rng(0).normal(size=(2, 6, KV_HEADS, 4)).astype(np.float32)
    scores = added["ValueNorm"]().scores(SimpleNamespace(v=v))
    np.testing.assert_allclose(scores, np.sqrt(np.square(v).sum(-1)).swapaxes(1, 2), rtol=1e-5)
    model = ContextModel(small_model(), added["eviction"], chunk=8, multiple=8)
    pruned = model.prune(model.read([list(range(1, 21))]), keep_rate=0.5)
    assert pruned.kept.tolist() == pruned.asked.tolist() == [LAYERS * KV_HEADS * 10]
