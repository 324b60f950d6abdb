"""Our side of `bench_decode`: reading, pruning and decoding one batch of prompts, each part timed by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rcp.eviction import EvictionPolicy
from rcp.eviction.compaction import stepped
from rcp.eviction.prompt import Eviction
from rcp.infer import programs
from rcp.infer.generate import prefill
from rcp.infer.weights import ModelWeights
from rcp.nn.cache import as_context

MULTIPLE, RUNS = 64, 4  # as `ContextModel` has them


class Program:
    """A jitted function of a graph, compiled for the first arguments that it gets; all later ones have their shapes."""

    def __init__(self, function: Any, graph: Any, **static: Any):
        self._function, self._graph, self._static = function, graph, static
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> tuple[float, Any]:
        """Seconds, compilation excluded, and the result."""
        run = self._compiled or self._function.lower(self._graph, *arguments, **self._static).compile()
        self._compiled = run
        start = time.perf_counter()
        result = jax.block_until_ready(run(*arguments))
        return time.perf_counter() - start, result


@partial(jax.jit, static_argnames="graph")
def _prefill(graph, params, tokens):
    return prefill(nnx.merge(graph, params), tokens, capacity=tokens.shape[1])


class Ours:
    """One batch of prompts of equal length.

    Args:
      rates: keep rates below 1. new: tokens decoded.
    """

    def __init__(
        self,
        weights: ModelWeights,
        ids: np.ndarray,
        *,
        policy: EvictionPolicy,
        rates: Sequence[float],
        new: int,
    ):
        self._weights, self.rates, self._policy = weights, tuple(rates), policy
        self._tokens = jnp.asarray(ids, jnp.int32)
        graph = weights.graph
        self._prefills = {n: Program(_prefill, graph) for n in (self._tokens.shape[1], *map(self.short, rates))}
        self._read = Program(programs.read, graph, needs=policy.needs, chunk=None, repeat=None)
        self._choose = Program(programs.choose, graph, eviction=Eviction(policy))
        self._prunes: dict[float, Program] = {}
        options = {"max_new": new, "eos_ids": (), "pad_id": 0}
        self._decodes = {name: Program(programs.go_on, graph, **options) for name in (1.0, *rates)}
        self._decode_rounded = Program(programs.go_on, graph, **options)
        self._fresh = {rate: Program(programs.go_on, graph, **options) for rate in rates}
        self.decoded: list[list[int]] = []
        self.decoded_rounded: list[list[int]] = []

    def short(self, rate: float) -> int:
        return max(1, int(rate * self._tokens.shape[1]))

    def once(self) -> dict[str, float]:
        """Seconds of each part: "prefill", "decode 1", "int8 weights", and for a rate r "read", "prune r", "decode r",
        "fresh r".

        "int8 weights" is "decode 1" with the weights in 8 bits.
        "read" is reading in chunks with what the policy gathers; "fresh r" is decoding behind a prompt that had no more
        than the kept tokens from the start.
        """
        w, seconds = self._weights, {}
        seconds["prefill"], (logits, cache) = self._prefills[self._tokens.shape[1]](w.params, self._tokens)
        seconds["decode 1"], out = self._decodes[1.0](w.params, as_context(cache), logits, None, w.layers)
        self.decoded = np.asarray(out.tokens).tolist()
        seconds["int8 weights"], out = self._decode_rounded(w.params, as_context(cache), logits, None, w.rounded)
        self.decoded_rounded = np.asarray(out.tokens).tolist()
        del cache
        if not self.rates:
            return seconds
        there = np.ones(self._tokens.shape, bool)
        seconds["read"], read = self._read(w.params, self._tokens, there, ~there)
        for rate in self.rates:
            most = np.int32(np.iinfo(np.int32).max)
            chose, (kept, capacity, _) = self._choose(w.params, read, np.float32(rate), most, None, None)
            if rate not in self._prunes:
                capacities = stepped(np.asarray(capacity), MULTIPLE, RUNS)
                options = {"capacities": capacities, "repack": False, "int8": False}
                self._prunes[rate] = Program(programs.prune, w.graph, **options)
            gathered, context = self._prunes[rate](w.params, read, kept, np.int32(0))
            seconds[f"prune {rate:g}"] = chose + gathered
            seconds[f"decode {rate:g}"], _ = self._decodes[rate](w.params, context, read.logits, None, w.layers)
            del context, kept
        del read
        for rate in self.rates:
            _, (logits, cache) = self._prefills[self.short(rate)](w.params, self._tokens[:, : self.short(rate)])
            seconds[f"fresh {rate:g}"], _ = self._fresh[rate](w.params, as_context(cache), logits, None, w.layers)
        return seconds
