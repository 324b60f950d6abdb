"""The pure step that trains a scorer of cache entries on traces, with or without reading answers by the model.

Low-rank updates of the model (partition "lora") learn beside it, where contexts are read anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rcp import sampling
from rcp.config_eviction import BEHIND, EvictionConfig
from rcp.eviction.allotment import ADA, GLOBAL, UNIFORM
from rcp.eviction.compaction import Candidates, mask_entries
from rcp.eviction.learned import Learned, Weights, describe
from rcp.eviction.prompt import Eviction, Weighed
from rcp.eviction.select import guarantees
from rcp.nn.cache import Context, KVCache, as_context, tail_of
from rcp.nn.chunk import read_chunk
from rcp.nn.eviction_scorer import ScorerShape, score_layer
from rcp.objectives import eviction as objectives
from rcp.objectives import global_mean
from rcp.train.eviction_reading import Reading, log_prob_of, read_context
from rcp.train.networks import Params, model_params
from rcp.train.state import Metrics, TrainState, sum_shares
from rcp.train.step import apply, finish
from rcp.train.trace_pipeline import Asked, TraceBatch

SHOWN = (0.1, 0.25)
"""Rates at which the metrics say what share of the attention the best entries would hold."""
ALLOTMENTS = {"head": UNIFORM, "layer": ADA, "model": GLOBAL}


@dataclass(frozen=True)
class Scoring:
    """What a step needs to know of model and scorer. `graph`: the model's, without parameters."""

    shape: ScorerShape
    graph: nnx.GraphDef
    dtype: Any


def make_eviction_step(
    c: EvictionConfig, weights: Mapping[str, float], scoring: Scoring, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step. `weights` are those of the objectives; frozen is {"frequencies"} and, to read answers, {"model"}."""

    def step(
        state: TrainState, frozen: Params, batch: TraceBatch, *, axis_name: str | None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch.index)
        free = free_entries(batch, c.sinks)

        def loss_of(params: Params) -> tuple[Array, dict[str, Array]]:
            scores = score_trace(scoring.shape, params["pruner"], batch, frozen["frequencies"])
            values = _on_traces(c, weights, scores, batch, free, keys)
            if set(BEHIND) & set(weights):
                values |= _on_answers(c, weights, scoring, params, frozen, scores, batch, keys)
            means = {name: global_mean(value, batch.weight, axis_name) for name, value in values.items()}
            loss = jnp.zeros((), jnp.float32)
            for name, weight in weights.items():
                loss = loss + weight * means[name]
            return loss, means

        (loss, means), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        loss, means, grads = sum_shares((loss, means, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = apply(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)} | means
        return finish(state, params, opt_state, state.aux, metrics, 1)

    return step


def score_trace(
    shape: ScorerShape, weights: Params, batch: TraceBatch, frequencies: Float[Array, " half"]
) -> Float[Array, "batch layers kv_heads entries"]:
    """What the policy would give to the entries; see `rcp.eviction.learned`."""
    heads = batch.k.shape[3]
    position = jnp.broadcast_to(batch.position[..., None], (*batch.position.shape, heads))
    valid = position >= 0

    @jax.checkpoint  # a description is ten times its trace
    def of_layer(part: tuple) -> Array:
        w, k, v, measured, hidden = part
        described = describe(
            k,
            v,
            position=position,
            valid=valid,
            end=batch.length,
            frequencies=frequencies,
            measured=[measured[:, i].astype(jnp.float32) for i in range(measured.shape[1])],
            hidden=hidden if shape.common else None,
        )
        return score_layer(shape, w, described)

    each = tuple(jnp.swapaxes(x, 0, 1) for x in (batch.k, batch.v, batch.measured, batch.hidden))
    return jnp.swapaxes(jax.lax.map(of_layer, (weights, *each)), 0, 1)


def free_entries(batch: TraceBatch, sinks: int) -> Bool[Array, "batch layers kv_heads entries"]:
    """Entries that scores decide about: those of the context but its sinks."""
    free = batch.position >= jnp.int32(sinks)
    return jnp.broadcast_to(free[:, None, None], batch.useful.shape)


def _on_traces(
    c: EvictionConfig, weights: Mapping[str, float], scores: Array, batch: TraceBatch, free: Array, keys: Array
) -> dict[str, Array]:
    """The objectives that need no model, and what the best entries hold."""
    useful = batch.useful.astype(jnp.float32)
    if c.value_norm:
        size = jnp.linalg.norm(batch.v.astype(jnp.float32), axis=-1)
        useful = useful * jnp.swapaxes(size, 2, 3)
    values = {}
    together = tuple(objectives.grouped(x, c.across) for x in (scores, useful, free))
    if "golden" in weights:
        values["golden"] = objectives.golden(*together)
    if "ranking" in weights:
        numbers = jnp.arange(c.samples, dtype=jnp.uint32)
        drawn = jax.vmap(lambda n: jax.vmap(lambda key: jax.random.fold_in(key, n))(keys))(numbers)
        rankings = objectives.draw_rankings(drawn, *together)
        values |= {"ranking": objectives.ranking(rankings), "reward": rankings.reward.mean(axis=(0, 2))}
    for rate in SHOWN:
        values[f"kept_{round(100 * rate)}"] = objectives.retained(*together, rate=rate)
    return values


def _on_answers(
    c: EvictionConfig,
    weights: Mapping[str, float],
    scoring: Scoring,
    params: Params,
    frozen: Params,
    scores: Array,
    batch: TraceBatch,
    keys: Array,
) -> dict[str, Array]:
    """The objectives that read a question with its answer behind what is kept, at a rate drawn for each context."""
    rates = jnp.asarray(c.keep_rates, jnp.float32)
    picked = jax.vmap(lambda key: jax.random.choice(jax.random.fold_in(key, 1 << 20), rates))(keys)
    budget = sampling.count_of_rate(batch.length, picked)
    contexts = _contexts(c, scoring, params, frozen, scores, batch, budget)
    reader, said = model_params(params, frozen), answer_places(batch)
    share, most = ALLOTMENTS[c.across], c.stream_size or None
    values = {}
    if {"distil", "likelihood"} & set(weights):
        w = contexts(None).last
        keep = sampling.straight_through(w.subset(share, most=most).mask, _soft(c, w))
        pruned = read_answers(scoring.graph, reader, mask_entries(w.found, keep), batch)
        if "distil" in weights:
            full = read_answers(scoring.graph, frozen["model"], _whole(batch, scoring.dtype), batch)
            values["distil"] = objectives.distil(jax.lax.stop_gradient(full), pruned, said)
        if "likelihood" in weights:
            values["likelihood"] = answer_nll(pruned, batch, said)
    if "task" in weights:

        def draw(number: Array) -> tuple[Array, Array]:
            drawn = jax.vmap(lambda key: jax.random.fold_in(key, (1 << 21) + number))(keys)
            w, before = contexts(drawn)
            subset = w.subset(share, most=most, drawn=drawn)
            read = read_answers(scoring.graph, reader, mask_entries(w.found, subset.mask), batch)
            held = w.valid.sum(axis=(1, 2, 3))
            return -answer_nll(read, batch, said), before + log_prob_of(subset, held)

        reward, log_prob = jax.lax.map(draw, jnp.arange(c.samples, dtype=jnp.uint32))
        reward = jax.lax.stop_gradient(reward)
        values |= {"task": objectives.task(reward, log_prob), "answer_nll": -reward.mean(axis=0)}
    return values


def _contexts(
    c: EvictionConfig,
    scoring: Scoring,
    params: Params,
    frozen: Params,
    scores: Array,
    batch: TraceBatch,
    budget: Int[Array, " batch"],
) -> Callable[[Array | None], Reading]:
    """From the keys that evictions are drawn with (None: the best are kept) to the contexts before their last one."""
    if c.reading == "anew":
        policy = Learned(scoring.shape, Weights(params["pruner"]), c.measures)
        eviction = Eviction(policy, ALLOTMENTS[c.across], sinks=c.sinks)
        model = nnx.merge(scoring.graph, model_params(params, frozen))
        bound = jnp.minimum(budget, c.stream_size) if c.stream_size else budget
        return lambda drawn: read_context(model, eviction, c, batch.context, bound, drawn=drawn)
    found = _candidates(batch, scoring.dtype)
    valid = jnp.moveaxis(found.valid, (0, 3), (1, 2))
    budgets = jnp.broadcast_to(budget[:, None], scores.shape[:2])
    last = Weighed(found, valid, guarantees(valid, sinks=c.sinks), scores, budgets)
    reading = Reading(last, jnp.zeros(budget.shape, jnp.float32))
    return lambda drawn: reading


def _soft(c: EvictionConfig, w: Weighed) -> Float[Array, "batch layers kv_heads entries"]:
    """The relaxed mask of what `select` keeps, without the floor that a head may be sure of."""
    logits = jnp.where(w.forced, jnp.inf, jnp.where(w.valid, w.scores, -jnp.inf))
    together = objectives.grouped(logits, c.across)
    batch, groups, _ = together.shape
    heads = w.scores.shape[2]
    total = w.budgets[:, :, None] * jnp.ones((heads,), jnp.int32)[None, None]
    count = total.reshape(batch, groups, -1).sum(axis=-1)
    return sampling.relaxed_top_k(together, count, c.temperature).reshape(w.scores.shape)


def _candidates(batch: TraceBatch, dtype: Any) -> Candidates:
    k, v = (jnp.swapaxes(x, 0, 1).astype(dtype) for x in (batch.k, batch.v))
    slots = jnp.arange(k.shape[2], dtype=jnp.int32)[None, None, :, None]
    position = jnp.broadcast_to(slots, k.shape[:4])
    return Candidates(k, v, position, position < batch.length[None, :, None, None], batch.length)


def _whole(batch: TraceBatch, dtype: Any) -> Context:
    k, v = (jnp.swapaxes(x, 0, 1).astype(dtype) for x in (batch.k, batch.v))
    return as_context(KVCache(k, v, batch.length, batch.length))


def answer_places(batch: Asked) -> Bool[Array, "batch tokens"]:
    """Tokens after which one of the answer is said."""
    return jnp.pad(batch.answer[:, 1:], ((0, 0), (0, 1)))


def read_answers(graph: Any, params: Params, context: Context, batch: Asked) -> Float[Array, "batch tokens vocab"]:
    """Log-probabilities of the next token after each token of question and answer, read behind a context."""
    model = nnx.merge(graph, params)
    tail = tail_of(context, batch.tokens.shape[1])
    h = read_chunk(model, jnp.maximum(batch.tokens, 0), tail, context=context, valid=batch.tokens >= 0, slots=0)[0]
    return jax.nn.log_softmax(model.logits(h), axis=-1)


def answer_exact(log_probs: Array, batch: Asked, said: Bool[Array, "batch tokens"]) -> Bool[Array, " batch"]:
    """Whether each token of the gold answer is the likeliest behind those before it."""
    following = jnp.pad(batch.tokens[:, 1:], ((0, 0), (0, 1)))
    return jnp.all(~said | (jnp.argmax(log_probs, axis=-1) == following), axis=1)


def answer_nll(log_probs: Array, batch: Asked, said: Bool[Array, "batch tokens"]) -> Float[Array, " batch"]:
    """Of the gold answer, nats a token."""
    following = jnp.pad(jnp.maximum(batch.tokens[:, 1:], 0), ((0, 0), (0, 1)))
    found = jnp.take_along_axis(log_probs, following[..., None], axis=-1)[..., 0]
    count = jnp.maximum(said.sum(axis=1), 1).astype(jnp.float32)
    return -jnp.sum(jnp.where(said, found, 0.0), axis=1) / count
