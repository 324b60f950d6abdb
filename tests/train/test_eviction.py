"""Learned eviction end to end on a tiny model: traces, training, the checkpoint as a policy, answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from rcp.config import Config
from rcp.config_eviction import EvictionConfig
from rcp.config_file import from_dict
from rcp.eviction import prompt as eviction_prompt
from rcp.eviction.compaction import candidates
from rcp.eviction.prompt import read_prompt
from rcp.infer.context import ContextModel
from rcp.infer.trained import load_trained
from rcp.infer.trained_eviction import load_eviction
from rcp.nn.cache import tail_of
from rcp.nn.chunk import read_chunk
from rcp.pretrained import Pretrained
from rcp.train.eviction_stages import eviction_stages
from rcp.train.eviction_step import Scoring, answer_nll, answer_places, make_eviction_step, score_trace
from rcp.train.loop import restore, run
from rcp.train.optim import make_optimizer
from rcp.train.state import new_state
from rcp.train.trace_pipeline import TraceBatch, TracePipeline, padded_trace, stack
from rcp.train.traces import Traces
from rcp.types import UserError
from tests.eviction.small import KV_HEADS, LAYERS, VOCABULARY, small_model


class Words:
    """Words, digits and marks as ids of a tiny vocabulary."""

    vocab_size, pad_id, eos_id = VOCABULARY, 0, 0

    def encode(self, text: str) -> list[int]:
        return [1 + sum(map(ord, word)) % (VOCABULARY - 1) for word in re.findall(r"\d|[^\W\d]+|[^\w\s]", text)]

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


def small() -> Pretrained:
    model = small_model()
    return Pretrained(model, model.config, Words(), None, "small", Path("small"), "0" * 16)  # pyright: ignore


def config_of(folder: Path, **eviction) -> Config:
    section = {
        "tasks": {
            "needle": {"name": "needle", "tokens": 110, "keys": 2},
            "tracking": {"name": "tracking", "tokens": 100},
        },
        "contexts": 4,
        "questions": 2,
        "tokens": 96,
        "question_tokens": 64,
        "folder": str(folder),
        "width": 8,
        "objectives": {"golden": 1.0, "ranking": 1.0},
        "answer_objectives": {"golden": 1.0, "distil": 1.0, "likelihood": 1.0, "task": 1.0},
        "answer_steps": 2,
        "samples": 2,
        "batch_size": 4,
        "sinks": 1,
    }
    return from_dict(
        {
            "model": {"name": "small"},
            "eviction": section | eviction,
            "optim": {"learning_rate": 2e-2},
            "train": {"steps": 40, "log_every": 1, "checkpoint_every": 20},
            "parallel": {"devices": 1},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eviction")
    config = config_of(folder / "traces")
    result = run(eviction_stages(config, small()), config, folder / "run")
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return config, folder / "run", result, rows


def test_training_raises_what_the_best_entries_hold(trained):
    """A quarter of the entries drawn at random would hold a quarter of the attention."""
    _, _, result, rows = trained
    ranked = [row for row in rows if row["stage"] == "traces"]
    first, last = (np.mean([row["kept_25"] for row in part]) for part in (ranked[:2], ranked[-4:]))
    assert last > first + 0.1 and last > 0.4, (first, last)
    assert ranked[-1]["golden"] < ranked[0]["golden"] and ranked[-1]["reward"] > ranked[0]["reward"]
    answered = [row for row in rows if row["stage"] == "answers"]
    assert result.finished and len(answered) == 2
    assert all(np.isfinite(row[name]) for row in answered for name in ("distil", "task", "answer_nll", "loss"))
    assert all(row["distil"] > 0 and row["likelihood"] > 0 for row in answered)


def test_another_second_stage_takes_the_first_over(trained, tmp_path):
    """The run is the one that trains both stages; where the first stage is another one it is refused."""
    config, first, _, _ = trained
    c = config.eviction
    other = replace(config, eviction=replace(c, answer_objectives={"likelihood": 1.0}, answer_learning_rate=1e-3))
    expected = run(eviction_stages(other, small()), other, tmp_path / "itself").state.params
    found = run(eviction_stages(other, small()), other, tmp_path / "other", prepared=first).state.params
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    rows = [json.loads(line) for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["answers"] * 2
    wider = replace(config, eviction=replace(c, width=16))
    with pytest.raises(UserError, match=r"traces computed does not fit this config:\n  config.eviction.width: 8 there"):
        run(eviction_stages(wider, small()), wider, tmp_path / "wider", prepared=first)


def test_the_likelihood_is_that_behind_the_cache_compacted(trained):
    """What the model makes of the answer behind the entries kept, gathered; and something is learned from it."""
    config, workdir, _, _ = trained
    loaded, c = small(), replace(config.eviction, keep_rates=(0.25,), sinks=1)
    traces = Traces(c, loaded)
    batch = stack([padded_trace(traces.load(i), i, c, np.random.default_rng(i), True) for i in range(2)])
    policy = load_eviction(workdir, loaded).policy
    scoring = Scoring(policy.shape, nnx.split(loaded.model)[0], loaded.model.dtype)  # pyright: ignore
    optimizer = make_optimizer(config.optim, 1, ("pruner",))
    params = {"pruner": {name: jax.numpy.asarray(x) for name, x in policy.weights.tree.items()}}  # pyright: ignore
    state = new_state(0, params, optimizer.init(params))
    frozen = {"frequencies": loaded.model.frequencies(), "model": nnx.to_pure_dict(nnx.split(loaded.model)[1])}
    step = make_eviction_step(c, {"likelihood": 1.0}, scoring, optimizer)
    metrics = jax.jit(partial(step, axis_name=None))(state, frozen, batch)[1]
    reader = ContextModel(loaded.model, replace(load_eviction(workdir, loaded), sinks=1), chunk=16, multiple=16)
    pruned = reader.prune(reader.read([traces.asked(i).context for i in range(2)]), keep_rate=0.25)
    tail = tail_of(pruned.context, batch.tokens.shape[1])
    tokens, there = np.maximum(batch.tokens, 0), batch.tokens >= 0
    h = read_chunk(loaded.model, tokens, tail, context=pruned.context, valid=there, slots=0)[0]
    log_probs = jax.nn.log_softmax(loaded.model.logits(h), axis=-1)
    expected = np.mean(answer_nll(log_probs, batch, answer_places(batch)))
    np.testing.assert_allclose(metrics["likelihood"], expected, rtol=1e-3)
    assert metrics["grad_norm"] > 0


def test_the_run_prunes_and_answers(trained):
    """Exactly what is asked for, with the scores of the last step."""
    _, workdir, _, _ = trained
    loaded = small()
    model = ContextModel(loaded.model, load_eviction(workdir, loaded), chunk=16, multiple=16)
    rng = np.random.default_rng(0)
    contexts = [rng.integers(1, VOCABULARY, n).tolist() for n in (30, 21)]
    pruned = model.prune(model.read(contexts), keep_rate=0.25)
    assert pruned.kept.tolist() == pruned.asked.tolist() == [LAYERS * KV_HEADS * n for n in (7, 5)]
    answers = model.answer(pruned, [[3, 1], [4]], max_new=4)
    assert [len(ids) for ids in answers] == [4, 4]


def test_the_policy_scores_as_training_did(trained):
    config, workdir, _, _ = trained
    loaded = small()
    c = config.eviction
    traces = Traces(c, loaded)
    batch = whole(traces, c)
    policy = load_eviction(workdir, loaded).policy
    state, _ = restore(eviction_stages(config, loaded), config, workdir)
    shape = policy.shape  # pyright: ignore
    found = jax.jit(lambda w, b: score_trace(shape, w, b, loaded.model.frequencies()))(state.params["pruner"], batch)
    rows = [traces.asked(i).context for i in range(2)]
    tokens = np.zeros((2, c.tokens), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    valid = np.arange(c.tokens)[None] < np.asarray([len(row) for row in rows])[:, None]

    @jax.jit
    def direct(tokens, valid):
        read = read_prompt(loaded.model, tokens, valid=valid, needs=policy.needs)
        return eviction_prompt.scores(loaded.model, candidates(read.cache), read.statistics, policy)

    there = np.broadcast_to(valid[:, None, None], found.shape)
    np.testing.assert_allclose(np.asarray(found)[there], np.asarray(direct(tokens, valid))[there], atol=0.05)


def whole(traces: Traces, c: EvictionConfig) -> TraceBatch:
    return stack([padded_trace(traces.load(i), i, c, np.random.default_rng(i), False) for i in range(2)])


def test_drawn_places_are_scored_as_in_the_whole_context(trained):
    """Less than the context is drawn, and a context that is not longer is taken whole."""
    config, workdir, _, _ = trained
    loaded = small()
    c = config.eviction
    traces = Traces(c, loaded)
    policy = load_eviction(workdir, loaded).policy
    score = jax.jit(partial(score_trace, policy.shape))  # pyright: ignore[reportAttributeAccessIssue]
    weights = policy.weights.tree  # pyright: ignore[reportAttributeAccessIssue]
    every = whole(traces, c)
    found = score(weights, every, loaded.model.frequencies())
    for size in (32, 90):
        some = whole(traces, replace(c, entries=size))
        drawn = score(weights, some, loaded.model.frequencies())
        for row, length in enumerate(every.length):
            places = some.position[row][some.position[row] >= 0]
            assert len(places) == min(size, length) == len(set(places.tolist())) and places.max() < length
            np.testing.assert_allclose(drawn[row][..., : len(places)], found[row][..., places], atol=1e-5)
            np.testing.assert_array_equal(some.useful[row][..., : len(places)], every.useful[row][..., places])


def test_a_run_on_drawn_places_goes_through(tmp_path):
    """The second stage, which reads the cache, sees all of it."""
    config = config_of(tmp_path / "traces", entries=24)
    stages = eviction_stages(config, small())
    assert [next(stage.make_pipeline()).k.shape[2] for stage in stages] == [24, 96]
    result = run(stages[:1], replace(config, train=replace(config.train, steps=2)), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result.finished and all(np.isfinite(row["loss"]) for row in rows)


def test_the_stream_goes_on_where_it_was(trained):
    config, _, _, _ = trained
    c = config.eviction
    one = TracePipeline(Traces(c, small()), c, batch_size=3, seed=5, answers=True)
    batches = [next(one) for _ in range(4)]
    other = TracePipeline(Traces(c, small()), c, batch_size=3, seed=5, answers=True)
    other.set_state({"batches": 3})
    for a, b in zip(batches[3], next(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(np.concatenate([batch.index for batch in batches])[:8].tolist()) == list(range(8))
    batch = batches[0]
    for name in batch._fields:
        assert len(getattr(batch, name)) == 3
    assert np.all(batch.answer <= (batch.tokens >= 0)) and batch.answer.any(axis=1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entries": 8, "kernel": 3}, "eviction.entries should be 0 with eviction.kernel"),
        ({"kernel": 2}, "eviction.kernel should be odd"),
        ({"objectives": {"distil": 1.0}}, "eviction.objectives should be weights of one or more of golden, ranking"),
        ({"measures": ["kvzip"]}, "eviction.measures should be some of"),
        ({"tasks": {"x": {"tokens": 64}}}, "eviction.tasks.x should be a section with the name of a task"),
        ({"question": True, "measures": ["keydiff"]}, "eviction.measures should be none with eviction.question"),
        ({"samples": 1}, "eviction.samples should be above 1"),
        ({"answer_learning_rate": 0.0}, "eviction.answer_learning_rate should be above 0 or None"),
        ({"tokens": 50}, "config.eviction.tokens is 50"),
        ({"tasks": {"x": {"name": "nedle"}}}, "eviction.tasks.x.name is 'nedle'; known tasks"),
    ],
)
def test_what_cannot_be_says_so(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        config = config_of(tmp_path, **change)
        eviction_stages(config, small())[0].make_pipeline()


def test_a_trace_of_a_text_that_has_changed_is_made_anew(tmp_path):
    c = config_of(tmp_path / "traces").eviction
    traces = Traces(c, small())
    path, made = traces._path(0), traces.load(0)
    with path.open("wb") as file:
        np.savez(file, **{**made, "context": made["context"][:-1], "k": 0 * made["k"]})
    later = Traces(c, small())  # of a run that begins then
    np.testing.assert_array_equal(later.load(0)["k"], made["k"])
    before = path.stat().st_mtime_ns
    Traces(c, small()).load(0)
    assert path.stat().st_mtime_ns == before


def test_what_is_no_such_run_says_so(trained, tmp_path):
    config, workdir, _, _ = trained
    with pytest.raises(UserError, match=r"holds a run that prunes caches, not prompts: .*docs/eviction.md"):
        load_trained(workdir)
    with pytest.raises(UserError, match="holds no run"):
        load_eviction(tmp_path, small())
    other = replace(small(), fingerprint="1" * 16)
    with pytest.raises(UserError, match="trained on other weights"):
        load_eviction(workdir, other)
    with pytest.raises(UserError, match="needs a published model, frozen"):
        eviction_stages(replace(config, model=replace(config.model, train="full")), small())
