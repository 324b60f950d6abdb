"""Learned eviction: a small trained network scores each entry from its key, its value and cheap statistics.

After KVP (Moschella, Manduchi and Sener, "Learning to Evict from Key-Value Cache", arXiv 2602.10238): ranking entries
by their usefulness to tokens to come, one light network for each key-value head or layer, the language model untouched.
Ours also sees the scores of policies that need no training (`MEASURES`), and may see the layer's input and the
question.

An entry is described by its key without rotation and its value, both divided by their root mean square; the logarithms
of these; its place (from the start, from the end of the context, and their ratio) and whether it is one of the first
four; the measures; and where the question is known, the largest attention of the question's tokens to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rcp.eviction.attended import H2O, SnapKV
from rcp.eviction.base import EvictionPolicy, Needs, Seen, all_needs, heads_first
from rcp.eviction.keys import ExpectedAttention, KeyDiff
from rcp.eviction.weights import reduce_weights
from rcp.nn.eviction_scorer import Described, ScorerShape, score_layer
from rcp.nn.layers import rotate

MEASURES: dict[str, EvictionPolicy] = {
    "expected_attention": ExpectedAttention(),
    "snapkv": SnapKV(),
    "keydiff": KeyDiff(),
    "h2o": H2O(recent=0.0, per_query=True),
}
SIGNED = ("keydiff",)
SINKS = 4
PLACES = 4  # numbers that tell an entry's place
QUESTION = 64  # last tokens of a question that are looked at


def inputs_of_entry(head_dim: int, measures: int, question: bool) -> int:
    """How many numbers describe an entry of a head."""
    return 2 * head_dim + 2 + PLACES + measures + question


def measure_needs(measures: tuple[str, ...]) -> Needs:
    """What must be gathered for the measures."""
    return all_needs(*(MEASURES[name].needs for name in measures))


def log_weight(weight: Array) -> Array:
    """An attention weight as an input of order 1."""
    return jnp.log(jnp.clip(weight.astype(jnp.float32), 1e-8, 1.0)) / 4 + 1.5


def as_input(name: str, scores: Array) -> Array:
    """A policy's scores as an input of order 1."""
    return scores.astype(jnp.float32) if name in SIGNED else log_weight(scores)


def describe(
    k: Float[Array, "batch entries kv_heads dim"],
    v: Float[Array, "batch entries kv_heads dim"],
    *,
    position: Int[Array, "batch entries kv_heads"],
    valid: Bool[Array, "batch entries kv_heads"],
    end: Int[Array, " batch"],
    frequencies: Float[Array, " half"],
    measured: list[Float[Array, "batch kv_heads entries"]],
    hidden: Float[Array, "batch entries model_dim"] | None = None,
) -> Described:
    """What the network sees of a layer's entries; `k` is rotated, `end` the position behind the context.

    `measured`: the measures, and how the question attends, as inputs already (`as_input`, `log_weight`).
    """
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    angle = position.astype(jnp.float32)[..., None] * frequencies[None, None, None]
    k = rotate(k, jnp.cos(angle), -jnp.sin(angle))
    vectors, sizes = [], []
    for x in (k, v):
        size = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        vectors.append(heads_first(x / size))
        sizes.append(heads_first(jnp.log(size)))
    first = heads_first(position).astype(jnp.float32)
    last = jnp.maximum(end[:, None, None].astype(jnp.float32) - 1 - first, 0.0)
    places = (jnp.log1p(first) / 4, jnp.log1p(last) / 4, first / (first + last + 1.0), first < SINKS)
    numbers = jnp.stack([*(x.astype(jnp.float32) for x in places), *measured], axis=-1)
    heads = jnp.concatenate([*vectors, *sizes, numbers], axis=-1)
    there = heads_first(valid)
    return Described(jnp.where(there[..., None], heads, 0.0), hidden, there)


class Weights:
    """A scorer's parameters, stacked over layers, known by a digest: so a policy that holds them can be static.

    In training they may be traced, and the policy is then no static argument.
    """

    def __init__(self, tree: Mapping[str, Any]):
        self.tree = {name: tree[name] for name in sorted(tree)}

    @cached_property
    def digest(self) -> str:
        found = hashlib.sha256()
        for name, x in self.tree.items():
            x = np.asarray(x)
            found.update(f"{name} {x.dtype} {x.shape} ".encode() + np.ascontiguousarray(x).tobytes())
        return found.hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and self.digest == other.digest

    def __repr__(self) -> str:
        return f"Weights({self.digest})"


@dataclass(frozen=True)
class Learned(EvictionPolicy):
    """The policy. Its parameters are constants of what is compiled for it.

    Attributes:
      measures: names of `MEASURES`. question: whether it looks at the question, which must then be read with the
        context.
    """

    name: ClassVar[str] = "learned"
    shape: ScorerShape
    weights: Weights
    measures: tuple[str, ...] = ()
    question: bool = False

    @property
    def needs(self) -> Needs:
        window = Needs(window=QUESTION if self.question else 0, hidden=self.shape.common > 0)
        return all_needs(measure_needs(self.measures), window)

    @property
    def asks(self) -> bool:
        return self.question

    @property
    def streams(self) -> bool:
        return super().streams and self.shape.heads != "layer" and not self.question

    def scores(self, seen: Seen, *, budget=None, keys=None) -> Float[Array, "batch kv_heads entries"]:
        measured = [as_input(name, MEASURES[name].scores(seen)) for name in self.measures]
        if self.question:
            measured.append(log_weight(question_attention(seen)))
        described = describe(
            seen.k,
            seen.v,
            position=seen.position,
            valid=seen.valid,
            end=seen.context_end,
            frequencies=seen.frequencies,
            measured=measured,
            hidden=seen.statistics.hidden if self.shape.common else None,
        )
        weights = {name: jnp.asarray(x)[seen.layer] for name, x in self.weights.tree.items()}
        return score_layer(self.shape, weights, described)


def question_attention(seen: Seen) -> Float[Array, "batch kv_heads entries"]:
    """Largest attention of the question's last `QUESTION` tokens to each entry, over them and the heads of a group."""
    queries, position = seen.statistics.queries, seen.statistics.query_position
    if seen.question is None or queries is None or position is None:
        raise ValueError("a policy that looks at the question needs it read with the context (Needs.window)")
    begin = seen.context_end
    weights = reduce_weights(
        queries,
        seen.k,
        key_order=seen.position,
        key_valid=seen.valid,
        query_order=position,
        query_valid=position >= begin[:, None],
        reduce="max",
    )
    return weights.max(axis=2)
