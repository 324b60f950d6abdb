"""Real programs of the project for tiny models, and three ways to look at them without running them.

`products` counts the matrix products of a traced program, loops by their trip counts: exact, and told apart from
elementwise operations. XLA's cost analysis of the compiled program counts both, but the body of a loop once only;
`unrolled` therefore replaces the loop over layers. XLA's memory analysis gives the bytes of arguments, results and
temporaries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from math import prod
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from rcp.config import OptimConfig
from rcp.cost.work import Stored
from rcp.infer.generate import prefill
from rcp.nn import transformer
from rcp.nn.parameters import TransformerConfig
from rcp.nn.step import laid_cache, room, step, unstacked
from rcp.nn.transformer import Transformer
from rcp.train.optim import make_optimizer
from rcp.train.reader_step import make_reader_step
from rcp.train.state import TrainState, new_state
from rcp.train.step import Networks
from rcp.types import Batch
from tests.tiny import Prompt, batch_of

SHAPES = {
    "heads, tied": TransformerConfig(
        vocab_size=512, d_model=128, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=64, d_ff=384
    ),
    "groups, untied, biases": TransformerConfig(
        vocab_size=512,
        d_model=128,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=64,
        d_ff=256,
        tie_embeddings=False,
        qkv_bias=True,
    ),
    "one key head, tied, norms of q and k": TransformerConfig(
        vocab_size=768, d_model=192, n_layers=2, n_heads=4, n_kv_heads=1, head_dim=64, d_ff=320, qk_norm=True
    ),
}
"""Multi-head, grouped-query and multi-query attention; tied and untied heads; every optional parameter."""

Program = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments, which may be shapes alone."""


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype), tree)


def model_of(shape: TransformerConfig, dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    """(graph, parameters as shapes)."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(shape, rngs=nnx.Rngs(0), dtype=dtype, **options)))


def tokens_of(batch: int, tokens: int) -> Any:
    return jax.ShapeDtypeStruct((batch, tokens), jnp.int32)


def hidden_program(shape: TransformerConfig, batch: int, tokens: int, stop: int | None = None) -> Program:
    graph, params = model_of(shape)
    return (lambda p, t: nnx.merge(graph, p).hidden(t, stop=stop)), (params, tokens_of(batch, tokens))


def prefill_program(shape: TransformerConfig, batch: int, tokens: int, capacity: int, dtype="float32") -> Program:
    graph, params = model_of(shape, dtype)
    return (lambda p, t: prefill(nnx.merge(graph, p), t, capacity=capacity)), (params, tokens_of(batch, tokens))


def step_program(shape: TransformerConfig, batch: int, slots: int, new: int) -> Program:
    """What `rcp.infer.generate.decode` does for each of `new` tokens behind a cache of `slots`."""
    graph, params = model_of(shape)

    def laid(params: Any) -> Any:
        model = nnx.merge(graph, params)
        return unstacked(model), laid_cache(model.new_cache(batch, slots), slots), room(model, batch, new)

    def one(params: Any, layers: Any, past: Any, written: Any, token: Any) -> Any:
        model = nnx.merge(graph, params)
        h, written = step(model, layers, past, written, jnp.int32(0), token[:, None], jnp.full((batch,), slots))
        return model.logits(h[:, 0]), written

    token = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return one, (params, *jax.eval_shape(laid, params), token)


def train_program(
    shape: TransformerConfig, batch: int, tokens: int, answer: int, *, accumulate: int = 1, **options: Any
) -> Program:
    """The step that trains every parameter, optimizer included."""
    graph, params = model_of(shape, **options)
    optimizer = make_optimizer(OptimConfig(accumulate=accumulate), 10, ("model",))
    step = make_reader_step(Networks(graph, graph, None, answer), optimizer)
    return functools.partial(step, axis_name=None), (state_of(params, optimizer), {}, prompts(batch, tokens, answer))


def state_of(params: Any, optimizer: Any) -> TrainState:
    def start(params: Any) -> TrainState:
        trained = {"model": nnx.to_pure_dict(params)}
        return new_state(0, trained, optimizer.init(trained))

    return jax.eval_shape(start, params)


def prompts(batch: int, tokens: int, answer: int, segments: int = 2) -> Batch:
    """A batch as shapes."""
    prompt = Prompt((2,) * segments, answer=min(answer, 2))
    return abstract(batch_of([prompt] * batch, tokens, segments))


def products(program: Program) -> int:
    """FLOPs of all matrix products, loops by their trip counts; of branches the largest."""
    function, arguments = program
    return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        assert name != "while", "a loop of unknown length"
        inner = [_products(part) for part in _inside(parameters.values())]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * prod(equation.outvars[0].aval.shape) * prod(left[i] for i in contracted)
        elif inner:
            total += max(inner) if name == "cond" else sum(inner) * parameters.get("length", 1)
    return total


def _inside(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _inside(value)
        elif isinstance(value, jax.extend.core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, jax.extend.core.Jaxpr):
            yield value


def compiled(program: Program, *, donate: tuple[int, ...] = ()) -> Any:
    function, arguments = program
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile()


def bytes_of(tree: Any) -> int:
    return sum(prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def unrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers one behind the other in place of a loop, whose body XLA's cost analysis would count once."""
    names = {**vars(lax), "scan": functools.partial(lax.scan, unroll=True)}
    monkeypatch.setattr(transformer, "lax", SimpleNamespace(**names))


STORED = {"float32": Stored(4, 4), "bfloat16": Stored(2, 2)}
