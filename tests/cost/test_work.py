"""Operations by formula against the matrix products of the real programs, exactly."""

from __future__ import annotations

import jax
import pytest

from rcp.cost.work import attended, blocks_of, decode_step, forward, parameters, prefill, train_step
from tests.cost.programs import (
    SHAPES,
    hidden_program,
    model_of,
    prefill_program,
    products,
    step_program,
    train_program,
)

shapes = pytest.mark.parametrize("name", list(SHAPES))
GROUPED = SHAPES["groups, untied, biases"]


@pytest.mark.parametrize("tokens", [1, 200, 256, 257, 1024, 1025, 1300, 4000])
def test_blocks_cover_every_query_and_its_past(tokens):
    groups = blocks_of(tokens)
    assert sum(queries for queries, _, _ in groups) == tokens
    assert groups[-1][1] == tokens
    assert tokens * (tokens + 1) / 2 <= attended(tokens) <= tokens**2


@shapes
@pytest.mark.parametrize("tokens", [40, 500, 1300])
def test_products_of_a_pass_are_exact(name, tokens):
    """In one block, in blocks that are written out, and in groups of blocks that a loop goes over."""
    shape = SHAPES[name]
    assert forward(shape, tokens, batch=2).products == products(hidden_program(shape, 2, tokens))
    assert forward(shape, tokens, batch=2, layers=1).products == products(hidden_program(shape, 2, tokens, stop=1))


@shapes
def test_products_of_reading_and_decoding_are_exact(name):
    shape = SHAPES[name]
    for tokens, capacity in ((40, 60), (300, 310), (300, 20)):
        read = prefill(shape, tokens, batch=3)
        assert read.products == products(prefill_program(shape, 3, tokens, capacity))
    assert decode_step(shape, 60, batch=3).products == products(step_program(shape, 3, 48, 12))


@shapes
@pytest.mark.parametrize(
    ("batch", "tokens", "answer", "options"),
    [
        (2, 60, 8, {}),
        (2, 60, 8, {"remat": True}),
        (2, 300, 8, {}),
        (1, 1100, 8, {}),  # scores are computed anew in the backward pass
        (5, 100, 60, {}),  # logits in chunks, computed anew in the backward pass
    ],
)
def test_products_of_a_training_step_are_exact(name, batch, tokens, answer, options):
    shape = SHAPES[name]
    work = train_step(shape, tokens, batch=batch, answer=answer, **options)
    assert work.products == products(train_program(shape, batch, tokens, answer, **options))


@shapes
def test_parameters_are_counted(name):
    _, params = model_of(SHAPES[name])
    assert parameters(SHAPES[name]) == sum(x.size for x in jax.tree.leaves(params))


def test_a_fuller_cache_costs_more_bytes_and_more_operations():
    small, large = decode_step(GROUPED, 100), decode_step(GROUPED, 200)
    per_slot = 2 * GROUPED.n_layers * GROUPED.n_kv_heads * GROUPED.head_dim
    assert large.bytes - small.bytes == 100 * per_slot * 4
    assert large.products - small.products == 100 * 4 * GROUPED.n_layers * GROUPED.n_heads * GROUPED.head_dim
