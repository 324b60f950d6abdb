"""From a config to a run: the same one every time, and an error for what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rcp.config import Config
from rcp.config_file import from_dict, to_dict
from rcp.data import pipeline as pipeline_module
from rcp.data.pack import encode
from rcp.data.tasks.chain import Chain
from rcp.infer.trained import load_trained
from rcp.train import build as build_module
from rcp.train.build import build
from rcp.train.lengths import MULTIPLE
from rcp.train.loop import restore, run
from rcp.train.prepare_step import PREPARED
from rcp.types import UserError

TASK = {"name": "chain", "segments": (2, 3), "test_segments": (3, 3), "needed": (1, 2), "variables": 4}


def config_of(**sections) -> Config:
    """The smoke config's shape, smaller still."""
    values = {
        "task": TASK,
        "data": {"batch_size": 4, "lengths": (16,), "max_segments": 3, "max_answer": 1, "train_examples": 16},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 16},
        "reader": {"steps": 3},
        "scorer": {"kind": "standalone", "width": 16, "heads": 2},
        "objectives": {"bce": 1.0, "ppo": 1.0},
        "policy": {"samples": 2},
        "train": {"steps": 4, "log_every": 1, "checkpoint_every": 2},
        "parallel": {"devices": 1},
    }
    for name, section in sections.items():
        whole = name == "objectives" or (name == "task" and "name" in section)
        values[name] = section if whole else {**values.get(name, {}), **section}
    return from_dict(values)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"task": {"name": "fact"}}, r"config.task.name is 'fact'.*known tasks: .*chain"),
        ({"task": {"segment": 3}}, r"unknown config key config.task.segment; did you mean config.task.segments\?"),
        ({"scorer": {"width": 15}}, r"config.scorer.width is 15: expected a multiple of config.scorer.heads = 2"),
        ({"scorer": {"heads": 0}}, r"config.scorer.heads should be above 0"),
        ({"scorer": {"kind": "hidden", "layer": 2}}, r"config.scorer.layer is 2: expected 0 to 1, the model's layers"),
        (
            {"scorer": {"kind": "linear", "groups": 9}},
            r"config.scorer.groups is 9: expected 1 or \d, the groups of .*chain",
        ),
        ({"scorer": {"kind": "mlp", "layer": -1}}, r"config.scorer.layer is -1"),
        ({"reader": {"steps": 0}}, r"config.reader.steps is 0, but a model from scratch must be trained"),
        ({"reader": {"task": {"hops": 3}}}, r"unknown config key config.reader.task.hops"),
        ({"task": {"name": "jsonl", "path": "x.jsonl"}}, r"\"scratch\", but the task jsonl brings no tokenizer"),
        ({"model": {"n_heads": 3, "n_kv_heads": 2}}, r"config.model: n_heads=3 is not a multiple of n_kv_heads=2"),
        ({"model": {"head_dim": 7}}, r"config.model: head_dim=7 must be even"),
        ({"model": {"vocab_size": 5}}, r"config.model.vocab_size is 5: the tokenizer of task chain has 2\d symbols"),
        ({"model": {"name": "no/such/folder"}}, r"no/such/folder"),
        ({"objectives": {}}, r"config.objectives is empty: expected one or more of nll"),
        ({"policy": {"samples": 1}}, r"config.policy.samples should be above 1 for policy.baseline \"leave_one_out\""),
    ],
)
def test_what_cannot_be_is_named(sections, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        build(config_of(**sections))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"train_examples": 0}}, "config.data.train_examples should be above 0"),
        (
            {"data": {"lengths": (8,)}},
            r"chain/train/\d+: the prompt has \d+ tokens, the limit is 8: raise config.data",
        ),
        ({"model": {"max_positions": 10}}, r"\d+ tokens, which config.data.lengths .*at most the 10 .*max_positions"),
        ({"data": {"max_segments": 2}}, r"the context has 3 segments, the limit is 2: raise config.data.max_segments"),
    ],
)
def test_data_that_does_not_fit_is_named(sections, message):
    with pytest.raises(UserError, match=message):
        pipeline = build(config_of(**sections)).stages[-1].make_pipeline()
        for _ in range(4):
            next(pipeline)


def test_an_answer_longer_than_its_place_is_named(monkeypatch):
    """It would be read, and learned, in part."""
    built = build(config_of())
    tokenizer = built.tokenizer
    monkeypatch.setattr(tokenizer, "encode", lambda text: [2, 3] if len(text.split()) == 1 else [2] * 3)
    with pytest.raises(UserError, match=r"the answer has 2 tokens, the limit is 1: raise config.data.max_answer"):
        next(built.stages[-1].make_pipeline())


def test_labels_that_the_task_does_not_know_are_named(monkeypatch):
    """The loss would be 0 throughout."""

    class Unlabelled(Chain):
        def example(self, split, index):
            return replace(super().example(split, index), support=None)

    monkeypatch.setitem(build_module.TASKS, "chain", Unlabelled)
    with pytest.raises(UserError, match=r"the task chain does not know which segments a question needs"):
        build(config_of()).stages[-1].make_pipeline()
    build(config_of(labels={"source": "alone"})).stages[-1].make_pipeline()


def test_the_same_config_gives_the_same_run_and_another_seed_another():
    def start(seed: int):
        config = from_dict({**to_dict(config_of()), "seed": seed})
        built = build(config)
        state = built.stages[0].init_state(None)
        last = built.stages[1].init_state(state.params)
        return jax.tree.map(np.asarray, (state.params, last.params, last.key))

    first, again, other = start(0), start(0), start(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(other)))


@pytest.mark.parametrize(
    ("train", "trained", "frozen"),
    [("frozen", {"pruner"}, {"model"}), ("lora", {"pruner", "lora"}, {"model"}), ("full", {"pruner", "model"}, set())],
)
def test_partitions_follow_the_config(train, trained, frozen):
    reader, pruner = build(config_of(model={"train": train}, objectives={"nll": 1.0})).stages
    previous = reader.init_state(None).params
    assert set(previous) == {"model"}
    assert set(pruner.init_state(previous).params) == trained
    assert set(pruner.frozen(previous)) == frozen
    if frozen:  # the very arrays that the stage before has left
        jax.tree.map(np.testing.assert_array_equal, pruner.frozen(previous)["model"], previous["model"])


@pytest.mark.parametrize("train", ["frozen", "full"])
def test_a_warm_start_trains_the_scorer_alone_and_hands_it_on(train, tmp_path):
    """By its own objectives and steps; the pruner's stage goes on from that scorer, and reads by the reader's model."""
    config = config_of(model={"train": train}, warm_start={"steps": 3, "objectives": {"bce": 1.0}})
    reader, warm, pruner = stages = build(config).stages
    assert [(stage.name, stage.steps) for stage in stages] == [("reader", 3), ("warm_start", 3), ("pruner", 4)]
    run(stages, config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["reader"] * 3 + ["warm_start"] * 3 + ["pruner"] * 4
    assert {"bce"} <= set(rows[3]) and not {"ppo", "reward"} & set(rows[3])
    assert {"bce", "ppo", "reward"} <= set(rows[-1])

    model = restore([reader], config, tmp_path)[0].params
    warmed = restore([reader, warm], config, tmp_path)[0].params
    assert set(warmed) == {"pruner"}
    untrained = warm.init_state(model).params["pruner"]
    assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(warmed["pruner"]), jax.tree.leaves(untrained)))
    begun = pruner.init_state({**model, **warmed}).params
    jax.tree.map(np.testing.assert_array_equal, begun["pruner"], warmed["pruner"])
    held = begun if train == "full" else pruner.frozen({**model, **warmed})
    jax.tree.map(np.testing.assert_array_equal, held["model"], model["model"])


def test_what_is_prepared_is_what_a_step_would_compute(tmp_path):
    """The same parameters in the end, read from a table that one pass over the examples, by two devices, has filled."""
    sections = {
        "scorer": {"kind": "pooled", "layer": 1},
        "labels": {"source": "alone"},
        "parallel": {"devices": 2},
    }
    at_once, prepared = (config_of(**sections, train={"prepare": prepare}) for prepare in (False, True))
    expected = run(build(at_once).stages, at_once, tmp_path / "at_once").state.params
    stages = build(prepared).stages
    assert [(stage.name, stage.steps) for stage in stages] == [
        ("reader", 3),
        ("labels", 4),
        ("states", 4),
        ("pruner", 4),
    ]
    found = run(stages, prepared, tmp_path / "prepared").state.params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), found, expected)
    rows = [json.loads(line) for line in (tmp_path / "prepared" / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["reader"] * 3 + ["labels"] * 4 + ["states"] * 4 + ["pruner"] * 4
    assert all(row["gain_spread"] > 0 for row in rows[3:7]) and all(row["state_size"] > 0 for row in rows[7:11])
    elsewhere = load_trained(tmp_path / "prepared", ["--config.data.max_segments=5", "--config.data.train_examples=8"])
    jax.tree.map(np.testing.assert_array_equal, elsewhere.weights[0], found)
    assert elsewhere.config.data.max_segments == 5 and set(elsewhere.weights[1]) == {"model"}


@pytest.fixture
def published(monkeypatch):
    """Any model but "scratch" is a small one with random weights, and has this fingerprint."""
    return publish(monkeypatch)


def publish(monkeypatch) -> dict[str, str]:
    weights = {"fingerprint": "weights"}
    scratch = config_of()
    model, tokenizer, _ = build_module.reader_of(scratch, build_module.make_task(scratch))
    monkeypatch.setattr(
        build_module, "load", lambda *_, **__: SimpleNamespace(model=model, tokenizer=tokenizer, **weights)
    )
    return weights


def preparing(**sections) -> Config:
    sections["train"] = {"prepare": True, **sections.get("train", {})}
    sections["scorer"] = {"kind": "pooled", "layer": 1, **sections.get("scorer", {})}
    return config_of(**{"model": {"name": "some/model"}, "labels": {"source": "alone"}, **sections})


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a run that has prepared labels and states."""
    folder, config = tmp_path_factory.mktemp("prepared") / "first", preparing()
    with pytest.MonkeyPatch.context() as monkeypatch:
        publish(monkeypatch)
        run(build(config).stages, config, folder)
    return folder


def test_what_is_prepared_serves_every_run_that_agrees_on_it(published, first, tmp_path):
    """Another scorer, other objectives, another seed: the run is the one that prepares for itself."""
    other = replace(
        preparing(scorer={"kind": "linear", "budget": True}, objectives={"bce": 1.0}, optim={"learning_rate": 0.01}),
        seed=3,
    )
    expected = run(build(other).stages, other, tmp_path / "itself").state.params
    found = run(build(other).stages, other, tmp_path / "other", prepared=first).state.params
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    rows = [json.loads(line) for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["pruner"] * 4
    again = run(build(other).stages, other, tmp_path / "other", prepared=tmp_path / "gone").state.params
    jax.tree.map(np.testing.assert_array_equal, again, expected)  # it goes on with what it has taken over
    jax.tree.map(np.testing.assert_array_equal, load_trained(tmp_path / "other").weights[0], expected)
    published["fingerprint"] = "others"
    with pytest.raises(UserError, match=r"--prepared=.*first: the checkpoint .*labels.* was trained on other weights"):
        run(build(other).stages, other, tmp_path / "third", prepared=first)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"max_segments": 4}}, r"config:\n  labels: config.data.max_segments: 3 there, 4 now\n  states: .*$"),
        ({"data": {"max_answer": 2}}, r"config.data.max_answer: 1 there, 2 now$"),
        ({"data": {"lengths": (24,)}}, r"config.data.lengths: .*16.* there, .*24.* now$"),
        ({"data": {"batch_size": 8}}, r"config.data.batch_size: 4 there, 8 now$"),
        ({"task": {**TASK, "needed": (1, 1)}}, r"config.task.needed: .*1, 2.* there, .*1, 1.* now$"),
        ({"model": {"name": "other/model"}}, r"config.model.name: 'some/model' there, 'other/model' now$"),
        (
            {"objectives": {"ppo": 1.0}, "scorer": {"layer": 0}},
            r"config:\n  states: config.scorer.layer: 1 there, 0 now$",
        ),
        (
            {"labels": {"source": "leave_one_out"}, "scorer": {"kind": "mlp"}},
            r"labels: config.labels.source: 'alone' there",
        ),
        ({"train": {"prepare": False}}, r"has no stage that could be taken over"),
        ({"model": {"name": "scratch"}}, r"has no stage that could be taken over"),
    ],
)
def test_what_was_prepared_otherwise_is_refused(published, first, tmp_path, sections, message):
    config = preparing(**sections)
    with pytest.raises(UserError, match=message):
        run(build(config).stages, config, tmp_path / "other", prepared=first)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("sections", "changed"),
    [
        ({"scorer": {"layer": 0}}, {"states"}),
        ({"scorer": {"apart": True}}, {"states"}),
        ({"scorer": {"question": False}}, {"states"}),
        ({"labels": {"source": "leave_one_out"}}, {"labels"}),
        ({"data": {"lengths": (24,)}}, {"labels", "states"}),
        ({"scorer": {"kind": "linear", "budget": True}, "labels": {"source": "alone", "sharpness": 9.0}}, set()),
    ],
)
def test_what_decides_a_table(sections, changed):
    before, now = preparing(), preparing(**sections)
    assert {table.name for table in PREPARED if table.decides(before) != table.decides(now)} == changed


@pytest.mark.parametrize(
    ("sections", "taken", "reason"),
    [
        ({"scorer": {"question": False}}, "labels", "  states: config.scorer.question: True there, False now"),
        ({"scorer": {"kind": "mlp"}}, "labels", ""),
        (
            {"labels": {"source": "leave_one_out"}},
            "states",
            "  labels: config.labels.source: 'alone' there, 'leave_one_out' now",
        ),
    ],
)
def test_of_what_was_prepared_that_is_taken_over_which_fits(
    published, first, tmp_path, capsys, sections, taken, reason
):
    """The rest is computed, before it or behind it, also by a run that was killed in between."""
    config = preparing(**sections)
    stages = build(config).stages
    expected = run(stages, config, tmp_path / "itself").state.params
    capsys.readouterr()
    begun = [replace(stage, steps=2) if reason and stage.name in reason else stage for stage in stages[:-1]]
    run(begun, config, tmp_path / "other", prepared=first)
    said = capsys.readouterr().err
    assert f"{taken}: taken over from {first}" in said and said.count("taken over") == 1
    assert (reason in said) if reason else ("computed here" not in said)
    found = run(stages, config, tmp_path / "other", prepared=first).state.params
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    rows = [json.loads(line) for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    computed = {stage.name for stage in stages} - {taken}
    assert {row["stage"] for row in rows} == computed and len(rows) == 4 * len(computed)


def test_a_run_without_a_finished_preparation_has_none_to_share(published, tmp_path):
    config = preparing()
    stages = build(config).stages
    with pytest.raises(
        UserError, match=r"--prepared=.*none: nothing of it fits this config:\n  labels: expected .*a run with .*labels"
    ):
        run(stages, config, tmp_path / "other", prepared=tmp_path / "none")
    run([replace(stages[0], steps=2)], config, tmp_path / "begun")
    with pytest.raises(UserError, match=r"its stage labels is not finished: run rcp train --workdir=.*begun first"):
        run(stages, config, tmp_path / "other", prepared=tmp_path / "begun")


def test_draws_are_judged_once_behind_the_warm_start_and_learned_from_by_the_pruner(tmp_path):
    """Two devices; killed in the judging and started again."""
    config = config_of(
        warm_start={"steps": 2, "objectives": {"bce": 1.0}},
        objectives={"ppo": 1.0},
        policy={"samples": 3, "logged": True},
        parallel={"devices": 2},
    )
    stages = build(config).stages
    assert [(stage.name, stage.steps) for stage in stages] == [
        ("reader", 3),
        ("warm_start", 2),
        ("judge", 4),
        ("pruner", 4),
    ]
    whole = run(stages, config, tmp_path / "whole").state.params
    begun = [replace(stage, steps=2) if stage.name == "judge" else stage for stage in stages[:3]]
    assert run(begun, config, tmp_path / "killed").step == 2
    found = run(stages, config, tmp_path / "killed").state.params
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["reader"] * 3 + ["warm_start"] * 2 + ["judge"] * 4 + ["pruner"] * 4
    judged, learned = ([row["reward"] for row in rows if row["stage"] == name] for name in ("judge", "pruner"))
    assert np.mean(learned) == pytest.approx(np.mean(judged), rel=1e-5)  # one epoch of the same draws
    trained = load_trained(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, trained.weights[0], whole)
    assert set(trained.weights[1]) == {"model"}


def test_preparing_asks_for_a_frozen_model_and_a_number_of_examples():
    with pytest.raises(UserError, match=r'config.model.train should be "frozen" where train.prepare is set'):
        config_of(train={"prepare": True}, model={"train": "full"})
    with pytest.raises(UserError, match=r"config.data.train_examples should be a number where train.prepare is set"):
        config_of(train={"prepare": True}, data={"train_examples": None})


@pytest.mark.parametrize(
    "budget",
    [
        {"keep_rates": (0.3, 0.7)},
        {"keep_tokens": 5},
        {"keep_tokens": (3, 100)},
        {"keep_tokens": 1, "granularity": "independent"},
    ],
)
def test_static_lengths_hold_every_pruned_prompt(budget):
    config = config_of(budget=budget, data={"lengths": (16, 32), "max_segments": 3})
    built = build(config)
    short, single = built.pruned_lengths(1000)
    for example in built.task.examples("train", 16):
        encoded = encode(example, built.tokenizer)
        sizes = [len(ids) for ids in encoded.context]
        fixed = encoded.length - sum(sizes)
        kept = max(config.budget.keep_tokens or (int(0.7 * sum(sizes)),))
        kept = sum(sizes) if config.budget.granularity == "independent" else kept  # any of them may be kept
        assert fixed + min(kept, sum(sizes)) <= short
        assert fixed + max(sizes) <= single
    assert short % MULTIPLE == single % MULTIPLE == 0


def test_the_training_set_is_tokenised_once(monkeypatch):
    """The lengths are measured on the very examples that the pipeline gives."""
    encoded: list[str] = []

    def counting(example, tokenizer, **options):
        encoded.append(example.uid)
        return encode(example, tokenizer, **options)

    monkeypatch.setattr(pipeline_module, "encode", counting)
    built = build(config_of())
    assert encoded == []
    built.pruned_lengths(1000)
    for _ in range(2):
        pipeline = built.stages[-1].make_pipeline()
        for _ in range(8):
            next(pipeline)
    built.pruned_lengths(1000)
    assert len(encoded) == len(set(encoded)) == 16


def test_overlong_prompts_lose_segments_where_the_config_says_so():
    config = config_of(data={"lengths": (11,), "overlong": "drop_segments"}, task={**TASK, "segments": (3, 3)})
    built = build(config)
    batches = [next(pipeline) for pipeline in [built.stages[-1].make_pipeline()] for _ in range(4)]
    kept = np.concatenate([(batch.support >= 0).sum(1) for batch in batches])
    assert kept.min() < 3
    for batch in batches:
        needed = [len(built.task.example("train", int(i)).support) for i in batch.index]  # pyright: ignore
        assert (batch.support == 1).sum(1).tolist() == needed
    assert max(built.pruned_lengths(1000)) <= 16


def test_recomputed_activations_give_the_same_gradient():
    def gradient(remat: bool):
        built = build(config_of(model={"train": "full", "remat": remat}))
        params = built.stages[0].init_state(None).params
        batch = next(built.stages[0].make_pipeline())

        def loss(params):
            return built.networks.read(params, {}, batch).nll_sum.sum()

        return jax.jit(jax.grad(loss))(params), str(jax.make_jaxpr(jax.grad(loss))(params))

    (kept, plain), (recomputed, again) = gradient(False), gradient(True)
    assert "remat" not in plain and "remat" in again
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), recomputed, kept)


def test_a_run_cut_short_goes_on_to_the_same_parameters(tmp_path):
    """The real steps of three stages, interrupted in the last; SIGKILL itself is tested with the toy."""
    config = config_of(
        objectives={"reinforce": 1.0},
        policy={"baseline": "moving_average", "samples": 1},
        warm_start={"steps": 2, "objectives": {"bce": 1.0}},
    )
    whole = run(build(config).stages, config, tmp_path / "whole")
    stages = build(config).stages
    pipeline = stages[-1].make_pipeline()

    class Cut:
        count = 0

        def __next__(self):
            self.count += 1
            if self.count == 4:
                raise RuntimeError("power cut")
            return next(pipeline)

        get_state = staticmethod(pipeline.get_state)
        set_state = staticmethod(pipeline.set_state)

    stages[-1] = replace(stages[-1], make_pipeline=Cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(stages, config, tmp_path / "cut")
    result = run(build(config).stages, config, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, result.state.params, whole.state.params)
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert {"loss", "reinforce", "reward", "grad_norm"} < set(rows[-1])
