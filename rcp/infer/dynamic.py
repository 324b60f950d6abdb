"""A model with dynamic context pruning, in use: prompts in, greedy continuations out, the cache as small as it gets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array

from rcp.eviction import dynamic
from rcp.eviction.compaction import stepped
from rcp.eviction.dynamic import DynamicContext
from rcp.eviction.prompt import CHUNK
from rcp.infer.generate import Generated
from rcp.nn.cache import with_slots
from rcp.nn.interaction import Interaction
from rcp.nn.transformer import Transformer
from rcp.types import UserError


class DynamicPrompt(NamedTuple):
    """Prompts that were read.

    Attributes:
      logits: after each one's last token.
      kept: entries left [layers, batch]. tokens: of each prompt [batch].
      capacities: of the layers, with room for what is decoded.
    """

    dynamic: DynamicContext
    logits: Array
    kept: np.ndarray
    tokens: np.ndarray
    capacities: tuple[int, ...]


class DynamicModel:
    """Reads prompts in chunks and goes on from what its tokens have left of them. Token ids in, token ids out.

    While a prompt is read all layers have one capacity, which doubles where the fullest needs it; before decoding they
    get their own, in at most `runs` runs of layers. In decoding every token's drops are compacted at once, at fixed
    capacities.

    Args:
      shift: see `rcp.eviction.dynamic.read`.
      multiple: capacities are multiples of it, so that few programs are compiled.
    """

    def __init__(
        self,
        model: Transformer,
        interaction: Interaction,
        *,
        shift: float = 0.0,
        chunk: int = CHUNK,
        multiple: int = 64,
        runs: int = 4,
        eos_ids: Sequence[int] = (),
        pad_id: int = 0,
    ):
        self._graph, self._params = nnx.split(model)
        self._interaction, self._shift = interaction, np.float32(shift)
        self._chunk, self._multiple, self._runs = chunk, multiple, runs
        self._eos_ids, self._pad_id = tuple(eos_ids), pad_id

    def read(self, prompts: Sequence[Sequence[int]], *, room: int = 0) -> DynamicPrompt:
        """Reads prompts; `room` is left in every layer for tokens to come.

        Raises:
          UserError: no prompt, or an empty one.
        """
        if not prompts or not all(map(len, prompts)):
            raise UserError(f"{len(prompts)} prompts: expected at least one, and none of them empty")
        lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
        width = -(-int(lengths.max()) // self._chunk) * self._chunk
        tokens = np.full((len(prompts), width), self._pad_id, np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        model = nnx.merge(self._graph, self._params)
        state, logits, capacities = dynamic.start(model, self._interaction, len(prompts)), None, ()
        needed = np.zeros(model.config.n_layers, np.int32)
        for first in range(0, width, self._chunk):
            there = np.clip(lengths - first, 0, self._chunk)
            part = tokens[:, first : first + self._chunk]
            found, after, counts = _read(self._graph, self._params, self._interaction, state, part, there, self._shift)
            logits = after if logits is None else jnp.where((there > 0)[:, None], after, logits)
            needed = np.asarray(counts)
            final = first + self._chunk >= width
            capacities = stepped(needed + room, self._multiple, self._runs) if final else self._doubled(needed)
            state = _compacted(found, capacities=capacities)
        kept = np.concatenate([np.asarray(run.length[:, :, 0]) for run in state.context.runs])
        assert logits is not None
        return DynamicPrompt(self._roomy(state, capacities), logits, kept, lengths, capacities)

    def answer(self, prompts: Sequence[Sequence[int]], *, max_new: int = 64) -> list[list[int]]:
        """Greedy continuations."""
        read = self.read(prompts, room=max_new)
        out = _generate(
            self._graph,
            self._params,
            self._interaction,
            read.dynamic,
            read.logits,
            self._shift,
            capacities=read.capacities,
            max_new=max_new,
            eos_ids=self._eos_ids,
            pad_id=self._pad_id,
        )
        lengths = np.asarray(out.length)
        return [row[:length].tolist() for row, length in zip(np.asarray(out.tokens), lengths, strict=True)]

    def _doubled(self, needed: np.ndarray) -> tuple[int, ...]:
        """One capacity for all layers, `multiple` times a power of two: chunks of a long prompt share few programs."""
        steps = -(-int(needed.max()) // self._multiple)
        return (self._multiple << max(0, steps - 1).bit_length(),) * len(needed)

    def _roomy(self, state: DynamicContext, capacities: Sequence[int]) -> DynamicContext:
        """The same with empty slots up to the capacities, which may be more than there were entries."""
        runs, shows, first = [], [], 0
        for run, shown in zip(state.context.runs, state.shows, strict=True):
            capacity = capacities[first]
            k, v, position = (with_slots(x, capacity) for x in (run.k, run.v, run.position))
            runs.append(run._replace(k=k, v=v, position=position))
            shows.append(with_slots(shown, capacity))
            first += run.k.shape[0]
        return DynamicContext(state.context._replace(runs=tuple(runs)), tuple(shows))


@partial(jax.jit, static_argnames=("graph",))
def _read(graph, params, interaction, state, tokens, lengths, shift):
    """The chunk as read, the logits after its last token, and what the layers need."""
    model = nnx.merge(graph, params)
    found = dynamic.read(model, interaction, state, tokens, lengths=lengths, shift=shift)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    return found, model.logits(jnp.take_along_axis(found.h, last, axis=1)[:, 0]), found.needed


_compacted = jax.jit(dynamic.compacted, static_argnames=("capacities",))


@partial(jax.jit, static_argnames=("graph", "capacities", "max_new", "eos_ids", "pad_id"))
def _generate(graph, params, interaction, state, logits, shift, *, capacities, max_new, eos_ids, pad_id) -> Generated:
    model = nnx.merge(graph, params)
    ends = jnp.asarray(list(eos_ids) or [-1], jnp.int32)
    rows = len(logits)

    def running(carry: tuple[Any, ...]) -> Array:
        return (carry[0] < max_new) & ~jnp.all(carry[4])

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, logits, state, out, done, length = carry
        token = jnp.where(done, pad_id, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        out = lax.dynamic_update_slice(out, token[:, None], (0, step))
        length = length + ~done
        done = done | jnp.any(token[:, None] == ends[None], axis=1)
        found = dynamic.read(model, interaction, state, token[:, None], shift=shift)
        return step + 1, model.logits(found.h[:, 0]), dynamic.compacted(found, capacities), out, done, length

    begin = (jnp.int32(0), logits, state, jnp.full((rows, max_new), pad_id, jnp.int32), jnp.zeros((rows,), bool))
    final = lax.while_loop(running, advance, (*begin, jnp.zeros((rows,), jnp.int32)))
    return Generated(final[3], final[5])
