"""Learned eviction end to end on a tiny model: traces, training, the checkpoint as a policy, answers."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.config import Config
from rcp.config_eviction import EvictionConfig
from rcp.config_file import from_dict
from rcp.eviction import ADA
from rcp.eviction import prompt as eviction_prompt
from rcp.eviction import stream as streams
from rcp.eviction.compaction import candidates
from rcp.eviction.learned import Learned, Weights
from rcp.eviction.prompt import Eviction, read_prompt
from rcp.infer.context import ContextModel
from rcp.infer.stream import prefill_stream
from rcp.infer.trained import load_trained
from rcp.infer.trained_eviction import load_eviction, load_tuned
from rcp.nn.cache import Context, tail_of
from rcp.nn.eviction_scorer import init_scorer
from rcp.nn.lora import init_lora
from rcp.pretrained import Pretrained
from rcp.train.eviction_reading import read_context
from rcp.train.eviction_stages import eviction_stages, scorer_shape
from rcp.train.eviction_step import Scoring, answer_nll, answer_places, make_eviction_step, read_answers, score_trace
from rcp.train.loop import export, restore, run
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
    with pytest.raises(UserError, match=r"nothing of it fits this config:\n  traces: config.eviction.width: 8 there"):
        run(eviction_stages(wider, small()), wider, tmp_path / "wider", prepared=first)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_traces_are_made_ends_the_run_behind_the_one_under_way(number, tmp_path, monkeypatch):
    """Those that are made stay; nothing is trained or saved."""
    config = config_of(tmp_path / "traces", answer_steps=0, answer_objectives={})
    config = replace(config, train=replace(config.train, steps=2))
    make, made = Traces._make, []

    def interrupted(traces: Traces, index: int) -> None:
        make(traces, index)
        made.append(index)
        if index == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Traces, "_make", interrupted)
    stopped = run(eviction_stages(config, small()), config, tmp_path / "run")
    assert (stopped.finished, stopped.stage, stopped.step, stopped.signal) == (False, "traces", 0, number)
    assert made == [0, 1, 2] and len(list((tmp_path / "traces").glob("*/*"))) == 3
    assert not (tmp_path / "run" / "checkpoints").exists()
    result = run(eviction_stages(config, small()), config, tmp_path / "run")
    assert result.finished and result.step == 2
    assert made == list(range(8))


def first_step(config: Config, loaded: Pretrained, weights: dict[str, float], pruner, batch, lora=None):
    """(metrics, state after it) of a step of the second stage; `pruner`: parameters of the scorer."""
    shape = scorer_shape(config, loaded.config)
    graph, params = nnx.split(loaded.model)
    trained = {"pruner": jax.tree.map(jnp.asarray, dict(pruner))} | ({} if lora is None else {"lora": lora})
    optimizer = make_optimizer(config.optim, 1, tuple(trained))
    state = new_state(0, trained, optimizer.init(trained))
    frozen = {"frequencies": loaded.model.frequencies(), "model": nnx.to_pure_dict(params)}
    step = make_eviction_step(config.eviction, weights, Scoring(shape, graph, loaded.model.dtype), optimizer)
    state, metrics = jax.jit(partial(step, axis_name=None))(state, frozen, batch)
    return metrics, state


def rows_of(config: Config, loaded: Pretrained, numbers=range(2)):
    """A batch of the second stage, and the contexts in it."""
    traces = Traces(config.eviction, loaded)
    rows = [padded_trace(traces.load(i), i, config.eviction, np.random.default_rng(i), True) for i in numbers]
    return stack(rows), [traces.asked(i).context for i in numbers]


def nll_behind(loaded: Pretrained, context: Context, batch: TraceBatch) -> np.ndarray:
    graph, params = nnx.split(loaded.model)
    log_probs = jax.jit(partial(read_answers, graph))(params, context, batch)
    return np.asarray(answer_nll(log_probs, batch, answer_places(batch)))


def test_the_likelihood_is_that_behind_the_cache_compacted(trained):
    """What the model makes of the answer behind the entries kept, gathered; and something is learned from it."""
    config, workdir, _, _ = trained
    loaded, config = small(), replace(config, eviction=replace(config.eviction, keep_rates=(0.25,)))
    batch, contexts = rows_of(config, loaded)
    eviction = load_eviction(workdir, loaded)
    pruner = eviction.policy.weights.tree  # pyright: ignore[reportAttributeAccessIssue]
    metrics, _ = first_step(config, loaded, {"likelihood": 1.0}, pruner, batch)
    reader = ContextModel(loaded.model, eviction, chunk=16, multiple=16)
    pruned = reader.prune(reader.read(contexts), keep_rate=0.25)
    expected = np.mean(nll_behind(loaded, pruned.context, batch))
    np.testing.assert_allclose(metrics["likelihood"], expected, rtol=1e-3)
    assert metrics["grad_norm"] > 0


def test_a_context_read_anew_is_the_trace(trained):
    """Low-rank updates at their beginning change nothing, and learn from the first step on."""
    config, workdir, _, _ = trained
    loaded = small()
    pruner = load_eviction(workdir, loaded).policy.weights.tree  # pyright: ignore[reportAttributeAccessIssue]
    weights = {"likelihood": 1.0, "distil": 1.0, "task": 1.0}
    batch, _ = rows_of(config, loaded)
    expected, _ = first_step(config, loaded, weights, pruner, batch)
    anew = replace(config, eviction=replace(config.eviction, reading="anew"))
    lora = init_lora(nnx.to_pure_dict(nnx.split(loaded.model)[1]), 2, jax.random.key(1))
    found, state = first_step(anew, loaded, weights, pruner, rows_of(anew, loaded)[0], lora)
    for name in ("likelihood", "distil", "answer_nll", "kept_25"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0.03)
    assert found["grad_norm"] > 0
    changed = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), state.params["lora"], lora)
    assert all(layer["b"] for layer in changed.values())  # of A, whose gradient is 0 where B is, none


STREAM = {"reading": "anew", "heads": "own", "stream_size": 12, "chunk": 8, "across": "layer", "keep_rates": (0.9,)}


def streamed(config: Config) -> Eviction:
    """A policy as `STREAM` trains it, with scores far from equal."""
    shape = scorer_shape(config, small().config)
    weights = init_scorer(shape, jax.random.key(3))
    weights["last"] = 30 * weights["last"]
    return Eviction(Learned(shape, Weights(weights), config.eviction.measures), ADA, sinks=config.eviction.sinks)


def test_training_reads_a_stream_as_inference_does(tmp_path):
    """The likelihood is that behind the cache which `prefill_stream` leaves, evicted from chunk by chunk."""
    loaded, config = small(), config_of(tmp_path / "traces", **STREAM)
    eviction, chunk = streamed(config), config.eviction.chunk
    batch, contexts = rows_of(config, loaded)
    pruner = eviction.policy.weights.tree  # pyright: ignore[reportAttributeAccessIssue]
    found, _ = first_step(config, loaded, {"likelihood": 1.0}, pruner, batch)
    read = jax.jit(lambda t, v: prefill_stream(loaded.model, t, eviction, size=12, chunk=chunk, valid=v)[1])
    nll = []
    for row, context in enumerate(contexts):
        before = -len(context) % chunk  # as in training, the last chunk is whole
        tokens, there = jnp.asarray([[0] * before + context]), jnp.arange(before + len(context))[None] >= before
        stream = read(tokens, there)
        assert len(context) > 40 and int(stream.context.runs[0].length.max()) <= 12
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        nll.append(nll_behind(loaded, stream.context, one)[0])
    np.testing.assert_allclose(found["likelihood"], np.mean(nll), rtol=1e-4)


def test_draws_of_a_stream_have_the_probability_of_all_their_evictions(tmp_path):
    """Of those before the last as chunk by chunk; where nothing has to go it is 1."""
    loaded, config = small(), config_of(tmp_path / "traces", **STREAM)
    c, eviction = config.eviction, streamed(config)
    tokens = jax.random.randint(jax.random.key(0), (2, 32), 1, VOCABULARY)
    tokens = tokens.at[:, :2].set(-1).at[1, :22].set(-1)  # of the second ten: all are held until the last eviction
    keys, budget = jax.random.split(jax.random.key(5), 2), jnp.asarray([5, 12])
    reading = jax.jit(lambda t, k: read_context(loaded.model, eviction, c, t, budget, drawn=k))(tokens, keys)

    @jax.jit
    def one(stream, part, drawn):
        tail, there = tail_of(stream.context, c.chunk), part >= 0
        part = jnp.maximum(part, 0)
        _, tail, stream = streams.read_behind(loaded.model, stream, tail, part, eviction, valid=there, slots=0)
        return streams.evict(loaded.model, stream, tail, eviction, budget=budget, drawn=drawn)

    stream, total = streams.start(loaded.model, eviction, 2, size=c.stream_size, chunk=c.chunk), 0.0
    for number in range(3):
        drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        stream, subset = one(stream, tokens[:, c.chunk * number : c.chunk * (number + 1)], drawn)
        total += float(subset.log_prob[0].sum())
    np.testing.assert_allclose(reading.log_prob, [total, 0.0], rtol=1e-4)
    assert total < 0
    held = np.asarray(reading.last.valid).sum(axis=(1, 2, 3)) // (LAYERS * KV_HEADS)
    assert held.tolist() == [5 + c.chunk, 10]


def test_a_run_with_low_rank_updates_gives_model_and_policy(tmp_path):
    """From its checkpoint and from its export; the policy alone is refused."""
    objectives = {"answer_objectives": {"likelihood": 1.0, "task": 1.0}}
    config = config_of(tmp_path / "traces", **(STREAM | {"keep_rates": (0.1, 0.25)} | objectives))
    config = replace(
        config,
        model=replace(config.model, train="lora", lora_rank=2, remat=True),
        train=replace(config.train, steps=2),
    )
    loaded, workdir = small(), tmp_path / "run"
    stages = eviction_stages(config, loaded)
    result = run(stages, config, workdir)
    assert result.finished and sorted(result.state.params) == ["lora", "pruner"]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row[name]) for row in rows[2:] for name in ("likelihood", "task", "loss"))
    model, eviction, tuned = load_tuned(workdir, loaded)
    assert tuned and eviction.policy.streams
    tokens = jnp.asarray([[3, 1, 4, 1, 5]])
    assert (
        float(jnp.abs(model.logits(model.hidden(tokens)) - loaded.model.logits(loaded.model.hidden(tokens))).max())
        > 1e-3
    )
    reader = ContextModel(model, eviction, chunk=16, multiple=16)
    pruned = reader.prune(reader.read([list(range(1, 20))]), keep_rate=0.5)
    assert len(reader.answer(pruned, [[3, 1]], max_new=4)[0]) == 4
    export(stages, config, workdir, tmp_path / "passed_on")
    again = load_tuned(tmp_path / "passed_on", loaded)
    np.testing.assert_array_equal(again.model.hidden(tokens), model.hidden(tokens))
    with pytest.raises(UserError, match="trained the model too"):
        load_eviction(workdir, loaded)
    with pytest.raises(UserError, match=r'config\.model\.train is "lora"'):
        eviction_stages(replace(config, eviction=replace(config.eviction, answer_steps=0)), loaded)


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
        ({"stream_size": 8}, "eviction.stream_size should be 0 without eviction.reading"),
        ({"reading": "anew", "stream_size": 8}, "eviction.stream_size should be 0 with eviction.heads"),
        ({"reading": "anew", "heads": "own", "stream_size": 2, "sinks": 3}, "stream_size should be 0 or at least"),
        ({"reading": "anew", "question": True, "measures": []}, 'eviction.reading should be "traces" with'),
        ({"tasks": {"x": {"name": "nedle"}}}, "eviction.tasks.x.name is 'nedle'; known tasks"),
    ],
)
def test_what_cannot_be_says_so(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        config = config_of(tmp_path, **change)
        eviction_stages(config, small())[0].make_pipeline()


@pytest.mark.parametrize("changed", ["context", "tokens", "answer"])
def test_a_trace_of_a_text_that_has_changed_is_made_anew(trained, tmp_path, changed):
    """Its context, a question or an answer."""
    c = replace(trained[0].eviction, folder=str(tmp_path / "traces"))
    traces = Traces(c, small())
    path, made = traces._path(0), traces.load(0)
    with path.open("wb") as file:
        np.savez(file, **{**made, changed: np.roll(made[changed], 1), "k": 0 * made["k"]})
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
    with pytest.raises(UserError, match="needs a published model, train"):
        eviction_stages(replace(config, model=replace(config.model, train="full")), small())
