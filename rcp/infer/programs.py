"""The compiled programs of `rcp.infer.context`: each is compiled once for every shape and every static argument.

`graph` and `params` are a model as `nnx.split` gives it; `weights` are its layers as decoding reads them
(`rcp.nn.step.unstacked`), which a program makes for itself where they are None.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from rcp import sampling
from rcp.eviction.compaction import moved, needed
from rcp.eviction.prompt import choose as choose_entries
from rcp.eviction.prompt import context_entries, read_prompt, taken_back
from rcp.eviction.prompt import prune as prune_cache
from rcp.infer.generate import advance, begin, decode, laid_out, prefill_behind
from rcp.infer.lossless import decode_lossless
from rcp.nn.cache import as_context, for_rows, quantised, tail_of
from rcp.nn.step import unstacked


@partial(jax.jit, static_argnames=("graph", "needs", "chunk", "repeat"))
def read(graph, params, tokens, valid, question, *, needs, chunk, repeat):
    model = nnx.merge(graph, params)
    return read_prompt(model, tokens, valid=valid, question=question, needs=needs, chunk=chunk, repeat=repeat)


@partial(jax.jit, static_argnames=("graph", "eviction"))
def choose(graph, params, read, rate, most, forced, keys, *, eviction):
    """Which entries are kept, how many a head of each layer holds at most, and (asked, kept, there) of each example."""
    model = nnx.merge(graph, params)
    tokens = context_entries(read)
    budget = jnp.minimum(sampling.count_of_rate(tokens, rate), most)
    kept = choose_entries(model, read, eviction, budget, forced=forced, keys=keys)
    heads = kept.keep.shape[2]
    of_context = kept.keep & ~read.question[:, None, None]
    asked = heads * kept.budget.sum(axis=1)
    there = heads * kept.budget.shape[1] * tokens
    return kept, needed(kept.keep), (asked, of_context.sum(axis=(1, 2, 3)), there)


@partial(jax.jit, static_argnames=("graph", "capacities", "repack", "int8"))
def prune(graph, params, read, kept, take_back, *, capacities, repack, int8):
    context = prune_cache(nnx.merge(graph, params), *taken_back(read, kept, take_back), capacities, repack=repack)
    return quantised(context) if int8 else context


@partial(jax.jit, static_argnames=("graph", "max_new", "eos_ids", "pad_id"))
def answer(graph, params, context, tokens, valid, drawn, weights=None, *, max_new, eos_ids, pad_id):
    model = nnx.merge(graph, params)
    context = for_rows(context, len(tokens))
    logits, tail = prefill_behind(model, context, tokens, valid=valid, room=max_new)
    options = {"max_new": max_new, "eos_ids": eos_ids, "pad_id": pad_id}
    return decode(model, logits, tail, sampling=drawn, context=context, weights=weights, **options)[0]


@partial(jax.jit, static_argnames=("graph", "max_new", "eos_ids", "pad_id"))
def go_on(graph, params, context, logits, drawn, weights=None, *, max_new, eos_ids, pad_id):
    model = nnx.merge(graph, params)
    tail = tail_of(context, max_new, model.dtype)
    options = {"max_new": max_new, "eos_ids": eos_ids, "pad_id": pad_id}
    return decode(model, logits, tail, sampling=drawn, context=context, weights=weights, **options)[0]


@partial(jax.jit, static_argnames=("graph", "max_new", "pad_id"))
def begin_answer(graph, params, context, logits, tokens, valid, *, max_new, pad_id):
    """What comes before the answer, laid out; the position that comes next; nothing decoded yet.

    `logits` after what is in the context; with `tokens`, a question, they are of no account.
    """
    model = nnx.merge(graph, params)
    if tokens is None:
        tail = tail_of(context, max_new, model.dtype)
    else:
        context = for_rows(context, len(tokens))
        logits, tail = prefill_behind(model, context, tokens, valid=valid, room=max_new)
    return laid_out(tail, max_new, context), tail.position, begin(model, logits, max_new=max_new, pad_id=pad_id)


@partial(jax.jit, static_argnames=("graph", "eos_ids", "pad_id"), donate_argnames="state")
def advance_answer(graph, params, past, position, state, until, drawn, weights, *, eos_ids, pad_id):
    options = {"until": until, "sampling": drawn, "eos_ids": eos_ids, "pad_id": pad_id}
    return advance(nnx.merge(graph, params), weights, past, position, state, **options)


@partial(jax.jit, static_argnames=("graph", "gamma", "turned", "max_new", "eos_ids", "pad_id"))
def lossless(
    graph,
    params,
    cache,
    logits,
    context,
    tokens,
    valid,
    drawn,
    weights=None,
    drafting=None,
    *,
    gamma,
    turned,
    max_new,
    eos_ids,
    pad_id,
):
    """`logits` after what is in the cache; with `tokens`, a question, they are of no account."""
    model = nnx.merge(graph, params)
    whole = as_context(cache)
    if turned:
        context = moved(context, whole.position, model.frequencies())
    room = max_new + gamma
    if tokens is None:
        tail = tail_of(whole, room, model.dtype)
    else:
        whole, context = (for_rows(x, len(tokens)) for x in (whole, context))
        logits, tail = prefill_behind(model, whole, tokens, valid=valid, room=room)
    options = {"gamma": gamma, "max_new": max_new, "eos_ids": eos_ids, "pad_id": pad_id}
    by = {"sampling": drawn, "weights": weights, "drafting": drafting}
    return decode_lossless(model, logits, tail, whole=whole, pruned=context, **by, **options)


@partial(jax.jit, static_argnames=("graph", "int8"))
def weights_of(graph, params, *, int8=False):
    return unstacked(nnx.merge(graph, params), int8=int8)
