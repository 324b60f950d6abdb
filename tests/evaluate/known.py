"""What the tests of evaluation share: prompts whose needed segment is known, and a reader whose answers are."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from rcp.data.pack import collate, encode
from rcp.data.tokenizer import SymbolTokenizer
from rcp.types import Batch, Example, Role

TOKENIZER = SymbolTokenizer([f"w{i}" for i in range(300)] + ["<b>"])
SEGMENTS, WORDS, COUNT, ROWS = 10, 10, 7, 4


class Reading(NamedTuple):
    nll_sum: Any
    answer_tokens: Any
    exact: Any


def examples() -> list[Example]:
    """Segment 4 of example i holds the answer."""
    out = []
    for i in range(COUNT):
        context = tuple("".join(f" w{(i + 17 * s + j) % 299}" for j in range(WORDS)) for s in range(SEGMENTS))
        out.append(Example(" w0", context, " w1", " <b> w2", support=(4,), group=f"g{i % 2}"))
    return out


def batches() -> list[Batch]:
    encoded = [encode(example, TOKENIZER, index=i, group=i % 2) for i, example in enumerate(examples())]
    return [collate(encoded[at : at + ROWS], 128, SEGMENTS, ROWS) for at in range(0, COUNT, ROWS)]


def read(params: Any, batch: Batch) -> Reading:
    """Answers where all of segment 4 is there; the NLL is params["cost"] times the context tokens read."""
    context = batch.role == Role.CONTEXT
    answered = jnp.sum(context & (batch.segment == 4), axis=1) == WORDS
    nll = params["cost"] * jnp.sum(context, axis=1).astype(jnp.float32)
    return Reading(nll, jnp.sum(batch.role == Role.ANSWER, axis=1), answered)
