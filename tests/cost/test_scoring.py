"""What scoring costs by formula, against the scorers themselves."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rcp.config import ScorerSection
from rcp.cost.scoring import check_scorer, features, network, scorer_parameters, scoring
from rcp.cost.work import forward
from rcp.nn.influx import InfluxConfig, InfluxScorer
from rcp.nn.scorer import POOLED, Scorer, ScorerConfig, early_features, piece_features
from rcp.types import UserError
from tests.cost.programs import SHAPES, model_of, products, prompts

SHAPE = SHAPES["groups, untied, biases"]
BATCH, SEGMENTS = 2, 3
KINDS = ("hidden", "mlp", "pooled", "linear", "standalone", "llmlingua2", "cot_influx")
CASES = (*((kind, {}) for kind in KINDS), ("linear", {"groups": 3, "products": True}))


def section(kind, **changes):
    plain = ScorerSection(kind, layer=1, width=32, depth=2, heads=2, budget=kind != "cot_influx", padding=False)
    return replace(plain, **changes)


def scorer_of(s: ScorerSection):
    """(graph, parameters as shapes), made as `rcp.train.build` makes it."""
    inputs = SHAPE.vocab_size if s.kind == "standalone" else SHAPE.d_model

    def make():
        if s.kind == "cot_influx":
            return InfluxScorer(InfluxConfig(inputs, s.width, s.positions, s.padding), nnx.Rngs(0))
        return Scorer(
            ScorerConfig(s.kind, inputs, s.width, s.depth, s.heads, s.budget, groups=s.groups, products=s.products),
            nnx.Rngs(0),
        )

    return nnx.split(nnx.eval_shape(make))


def network_program(s: ScorerSection, tokens: int):
    graph, params = scorer_of(s)
    places = SEGMENTS + 1 if s.kind in POOLED else tokens
    seen = None if s.kind == "standalone" else jax.ShapeDtypeStruct((BATCH, places, SHAPE.d_model), jnp.float32)
    budget = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    arguments = (params, prompts(BATCH, tokens, 1, SEGMENTS), seen, budget)
    return (lambda p, batch, x, k: nnx.merge(graph, p)(batch, x, k)), arguments


@pytest.mark.parametrize(("kind", "changes"), CASES)
@pytest.mark.parametrize("tokens", [40, 600])
def test_products_of_the_network_are_exact(kind, changes, tokens):
    """Past 512 tokens attention goes over blocks of queries, the last one filled up."""
    s = section(kind, **changes)
    assert network(SHAPE, s, tokens, SEGMENTS, batch=BATCH).products == products(network_program(s, tokens))


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_its_parameters_are_counted(kind, changes):
    s = section(kind, **changes)
    assert scorer_parameters(SHAPE, s) == sum(x.size for x in jax.tree.leaves(scorer_of(s)[1]))


@pytest.mark.parametrize("kind", ["hidden", "pooled", "llmlingua2"])
def test_products_of_what_it_reads_are_exact(kind):
    s, (graph, params) = section(kind), model_of(SHAPE)

    def read(params, batch):
        model = nnx.merge(graph, params)
        if kind == "pooled":
            return piece_features(model, batch, s.layer)
        return early_features(model, batch, s.layer, blind=kind == "llmlingua2")

    found = products((read, (params, prompts(BATCH, 300, 1, SEGMENTS))))
    assert features(SHAPE, s, 300, SEGMENTS, batch=BATCH).products == found


def test_reading_each_segment_by_itself_reads_the_weights_once_for_each():
    s = section("cot_influx")
    each = forward(SHAPE, 100, batch=BATCH, layers=1)
    assert features(SHAPE, s, 300, 3, batch=BATCH) == each * 3
    assert (
        features(SHAPE, replace(s, positions=50), 300, 3, batch=BATCH) == forward(SHAPE, 50, batch=BATCH, layers=1) * 3
    )
    assert features(SHAPE, section("pooled", apart=True), 300, 3, batch=BATCH) == each * 3


def test_a_scorer_of_its_own_reads_nothing_of_the_model():
    assert features(SHAPE, section("standalone"), 300, 3).flops == 0


def test_scoring_is_reading_and_the_network_and_grows_with_layers():
    one, two = (scoring(SHAPE, section("hidden", layer=layer), 300, 3) for layer in (1, 2))
    assert two.flops - one.flops == pytest.approx(forward(SHAPE, 300, layers=1).flops)
    assert two.bytes > one.bytes


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(UserError, match=r"config\.scorer\.layer is 3: expected 0 to 2"):
        check_scorer(SHAPE, section("hidden", layer=3))
    check_scorer(SHAPE, section("standalone", layer=3))
