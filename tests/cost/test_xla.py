"""The formulas against what XLA says of the compiled programs: operations, arguments, results, temporaries.

XLA's cost analysis counts the body of a loop once, so the loop over layers is unrolled here.

Temporaries are the arrays that XLA holds at the fullest moment. How it lays them into one another is a heuristic, which
at two layers leaves 10 to 20 % to what a formula can say. What each further layer adds is therefore held to the
formula, and the rest is bounded.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from rcp.cost.memory import activation_bytes, cache_bytes, parameter_bytes, reading_bytes, training
from rcp.cost.work import decode_step, forward, layer_parameters, prefill, train_step
from tests.cost.programs import (
    SHAPES,
    compiled,
    hidden_program,
    prefill_program,
    step_program,
    train_program,
    unrolled,
)

WITHIN = 0.05
GROUPED = SHAPES["groups, untied, biases"]


@pytest.mark.parametrize("name", list(SHAPES))
def test_operations_arguments_and_results(name, monkeypatch):
    """Of reading, of a decoded token and of a training step, elementwise operations and optimizer included."""
    unrolled(monkeypatch)
    shape = SHAPES[name]
    weights, cache, new = parameter_bytes(shape), cache_bytes(shape, 112, batch=2), cache_bytes(shape, 12, batch=2)
    said = 2 * shape.vocab_size * 4  # logits
    held = training(shape, 64, batch=4, answer=8)
    state = held.weights + held.optimizer
    for work, program, taken, given in (
        (prefill(shape, 96, batch=2), prefill_program(shape, 2, 96, 112), weights, cache + said),
        (decode_step(shape, 112, batch=2), step_program(shape, 2, 100, 12), weights + cache, new + said),
        (train_step(shape, 64, batch=4, answer=8), train_program(shape, 4, 64, 8), state, state),
    ):
        program = compiled(program)
        cost, memory = program.cost_analysis(), program.memory_analysis()
        assert work.flops == pytest.approx(cost["flops"], rel=WITHIN)
        assert work.bytes <= cost["bytes accessed"]  # XLA adds up operands and results of every operation
        assert taken == pytest.approx(memory.argument_size_in_bytes, rel=WITHIN)
        assert given == pytest.approx(memory.output_size_in_bytes, rel=WITHIN)


def test_why_the_layers_are_unrolled():
    """XLA counts a loop's body once, however often it runs: half of the operations of two layers are not there."""
    work, found = forward(GROUPED, 96, batch=2), compiled(hidden_program(GROUPED, 2, 96)).cost_analysis()
    assert found["flops"] == pytest.approx(work.flops / 2, rel=WITHIN)


def temporaries(program, **options):
    return compiled(program, **options).memory_analysis().temp_size_in_bytes


def test_temporaries_of_training():
    """A further layer adds its gradients and activations. Beside them stands at most one layer's worth of both.

    The state is donated, as in `rcp.train.parallel`; otherwise XLA puts the gradients where the new state will be.
    """
    shallow, deep = replace(GROUPED, n_layers=4), replace(GROUPED, n_layers=20)
    expected, found = [], []
    for shape in (shallow, deep):
        held = training(shape, 64, batch=4, answer=8)
        expected.append(held.gradients + held.activations)
        found.append(temporaries(train_program(shape, 4, 64, 8), donate=(0,)))
    assert expected[1] - expected[0] == pytest.approx(found[1] - found[0], rel=WITHIN)
    assert expected[1] == pytest.approx(found[1], rel=WITHIN)
    layer = activation_bytes(shallow, 64, batch=4, answer=8) / 4 + 4 * layer_parameters(shallow)
    assert 0 <= found[0] - expected[0] <= layer


def temporaries_of_reading(layers: int, tokens: int) -> tuple[float, int]:
    """By the formula, and XLA's."""
    shape = replace(GROUPED, n_layers=layers)
    program = prefill_program(shape, 2, tokens, tokens + 10)
    return reading_bytes(shape, tokens, tokens + 10, batch=2), temporaries(program)


def test_temporaries_of_reading_in_blocks():
    """A further layer adds its keys. The rest is known within a tenth."""
    (few, few_found), (many, many_found) = (temporaries_of_reading(layers, 300) for layers in (4, 20))
    assert many - few == pytest.approx(many_found - few_found, rel=WITHIN)
    assert few == pytest.approx(few_found, rel=0.1)


@pytest.mark.parametrize("layers", [4, 28])
def test_temporaries_of_reading_at_once(layers):
    expected, found = temporaries_of_reading(layers, 96)
    assert expected == pytest.approx(found, rel=WITHIN)
