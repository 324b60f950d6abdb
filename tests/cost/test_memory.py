"""Bytes by formula against the arrays of the real programs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

import jax
import pytest
from flax import nnx

from rcp.config import OptimConfig
from rcp.cost.memory import activation_bytes, cache_bytes, optimizer_bytes, parameter_bytes, reading_bytes, training
from rcp.cost.work import Stored, decoded_by, parameters
from rcp.infer import programs
from rcp.nn import cache as kv
from rcp.nn.reader import read
from rcp.train.optim import make_optimizer
from tests.cost.programs import SHAPES, STORED, bytes_of, model_of, prompts, state_of

shapes = pytest.mark.parametrize("name", list(SHAPES))
dtypes = pytest.mark.parametrize("dtype", list(STORED))
GROUPED = SHAPES["groups, untied, biases"]


@shapes
@dtypes
def test_weights_and_cache_are_exact(name, dtype):
    shape, stored = SHAPES[name], STORED[dtype]
    _, params = model_of(shape, dtype)
    assert parameter_bytes(shape, stored) == bytes_of(params)
    empty = jax.eval_shape(lambda: kv.empty(shape.n_layers, 3, 50, shape.n_kv_heads, shape.head_dim, dtype))
    assert cache_bytes(shape, 50, batch=3, stored=stored) == bytes_of(empty)


@shapes
@dtypes
def test_what_decoding_reads_is_exact(name, dtype):
    """The copy of the layers that is laid out for it, and in 8 bits the head's too; as it is, the head is no copy."""
    shape, stored = SHAPES[name], STORED[dtype]
    graph, params = model_of(shape, dtype)
    plain, rounded = (jax.eval_shape(partial(programs.weights_of, graph, int8=int8), params) for int8 in (False, True))
    head = shape.d_model * shape.vocab_size * stored.params
    assert decoded_by(shape, stored) == bytes_of(plain) + head
    assert decoded_by(shape, replace(stored, int8_weights=True)) == bytes_of(rounded)


@shapes
@pytest.mark.parametrize("accumulate", [1, 4])
def test_optimizer_state_is_the_moments_and_a_few_counts(name, accumulate):
    shape = SHAPES[name]
    optimizer = make_optimizer(OptimConfig(accumulate=accumulate), 10, ("model",))
    state = state_of(model_of(shape)[1], optimizer)
    expected = optimizer_bytes(parameters(shape), accumulate=accumulate)
    assert 0 <= bytes_of(state.opt_state) - expected < 64


def kept(shape, batch, tokens, answer, dtype="float32", remat=False):
    """Bytes that the backward pass is given, weights apart."""
    graph, params = model_of(shape, dtype, remat=remat, param_dtype="float32")

    def backward(params, batch):
        def loss(params):
            return read(nnx.merge(graph, params), batch, max_answer=answer).nll_sum.sum()

        return jax.vjp(loss, params)[1]

    arrays = jax.tree.leaves(jax.eval_shape(backward, params, prompts(batch, tokens, answer)))
    weights = {x.shape for x in jax.tree.leaves(params)}
    return sum(prod(x.shape) * x.dtype.itemsize for x in arrays if x.shape not in weights)


@shapes
@dtypes
@pytest.mark.parametrize(
    ("batch", "tokens", "answer"),
    [(2, 60, 8), (2, 300, 8), (1, 1100, 8), (5, 100, 60)],  # dense, blocks, scores computed anew, logits in chunks
)
def test_activations_are_what_the_backward_pass_is_given(name, dtype, batch, tokens, answer):
    shape = SHAPES[name]
    stored = Stored(4, STORED[dtype].compute)
    found = kept(shape, batch, tokens, answer, dtype)
    assert activation_bytes(shape, tokens, batch=batch, answer=answer, stored=stored) == pytest.approx(found, rel=0.05)


def test_with_remat_a_layer_keeps_its_input_alone():
    """And one layer at a time is computed again, which is in the formula and not in what is kept."""
    deeper = replace(GROUPED, n_layers=5)
    per_layer = (kept(deeper, 2, 60, 8, remat=True) - kept(GROUPED, 2, 60, 8, remat=True)) / 3
    assert per_layer == 2 * 60 * GROUPED.d_model * 4
    by_formula = [activation_bytes(s, 60, batch=2, answer=8, remat=True) for s in (GROUPED, deeper)]
    assert by_formula[1] - by_formula[0] == 3 * per_layer
    assert by_formula[1] < activation_bytes(deeper, 60, batch=2, answer=8)


def test_a_training_step_is_the_sum_of_its_parts():
    held = training(GROUPED, 64, batch=4, answer=8, accumulate=2)
    assert held.weights == held.gradients == parameter_bytes(GROUPED)
    assert held.optimizer == 3 * held.weights
    assert held.total == 5 * held.weights + activation_bytes(GROUPED, 64, batch=4, answer=8)


def test_reading_without_a_cache_holds_no_layer_s_keys():
    """One layer at a time: the depth of the model does not matter."""
    deeper = replace(GROUPED, n_layers=9)
    assert reading_bytes(GROUPED, 300, 0) == reading_bytes(deeper, 300, 0) < reading_bytes(GROUPED, 300, 310)
