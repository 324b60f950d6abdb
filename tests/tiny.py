"""Prompts, a decoder and a scorer small enough to be compiled many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flax import nnx

from rcp.data.pack import EncodedExample, collate
from rcp.nn.scorer import Scorer, ScorerConfig
from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.types import Batch

VOCABULARY = 24


@dataclass(frozen=True)
class Prompt:
    """How many tokens each piece of a prompt has. `forced`: (segment, place in it) of tokens that must be kept."""

    segments: tuple[int, ...]
    instruction: int = 1
    question: int = 2
    answer: int = 1
    forced: tuple[tuple[int, int], ...] = ()
    support: tuple[int, ...] | None = (0,)


def encode_prompt(prompt: Prompt, index: int) -> EncodedExample:
    """Random tokens in a prompt's layout; they depend on `index` alone. Token 0 is padding."""
    rng = np.random.default_rng(index)

    def draw(count: int) -> np.ndarray:
        return rng.integers(1, VOCABULARY, count).astype(np.int32)

    forced = tuple(np.zeros(size, bool) for size in prompt.segments)
    for segment, place in prompt.forced:
        forced[segment][place] = True
    support = np.full(len(prompt.segments), -1 if prompt.support is None else 0, np.int8)
    support[list(prompt.support or ())] = 1
    return EncodedExample(
        instruction=draw(prompt.instruction),
        context=tuple(draw(size) for size in prompt.segments),
        question=draw(prompt.question),
        answer=draw(prompt.answer),
        forced=forced,
        support=support,
        index=index,
    )


def batch_of(prompts: Sequence[Prompt], length: int, segments: int) -> Batch:
    """Prompts of random tokens as one numpy batch; row i is example i."""
    encoded = [encode_prompt(prompt, index) for index, prompt in enumerate(prompts)]
    return collate(encoded, length, segments, len(encoded))


def tiny_model(seed: int = 0, layers: int = 2) -> Transformer:
    """A random decoder whose logits are of order 1."""
    config = TransformerConfig(
        vocab_size=VOCABULARY, d_model=16, n_layers=layers, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24
    )
    model = Transformer(config, rngs=nnx.Rngs(seed), dtype="float32", param_dtype="float32")
    model.embedding[...] = model.embedding[...] * 25
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        weight = getattr(model.layers, name)
        weight[...] = weight[...] * 10
    return model


def tiny_scorer(
    kind: str = "standalone",
    depth: int = 1,
    seed: int = 0,
    budget: bool = False,
    apart: bool = False,
    groups: int = 1,
    products: bool = False,
) -> Scorer:
    """A random scorer whose scores are of order 1, so that subsets are not all alike."""
    inputs = VOCABULARY if kind == "standalone" else 16
    scorer = Scorer(ScorerConfig(kind, inputs, 16, depth, 2, budget, apart, groups, products), nnx.Rngs(seed))  # pyright: ignore
    last = ("into", "size", "alike", "budget") if kind == "linear" else ("token_head", "segment_head")
    for name in last:
        if (head := getattr(scorer, name, None)) is not None:
            head[...] = head[...] * (100 if kind == "linear" else 30)
    return scorer
