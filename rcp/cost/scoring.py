"""What it costs to score a prompt: the layers of the model that a scorer reads through, and its own network.

One function for each kind of `rcp.nn.scorer` (and `rcp.nn.influx`). Symbols: T tokens of the prompt, S segments, w the
scorer's width, h its heads, n its inputs (d, or w for a scorer with an embedding of its own), G = S + the number of
roles, Q queries (T, rounded up to blocks past `rcp.nn.match.DENSE_LIMIT`). Only matrix products are written out;
of the elementwise operations those of attention count, the others are far below them. Sorting and gathering (drawing
the best k, compacting) have no products and are not in any number here; `experiments/bench_sampling.py` times them.
"""

from __future__ import annotations

from rcp.config import ScorerSection
from rcp.cost.work import FLOAT32, NOTHING, OPERATIONS_A_SCORE, SINGLE, Stored, Work, forward
from rcp.nn.match import BLOCK, DENSE_LIMIT, MATCH_DIM
from rcp.nn.parameters import TransformerConfig
from rcp.nn.scorer import MAX_OFFSET, POOLED
from rcp.types import Role, UserError


def check_scorer(shape: TransformerConfig, scorer: ScorerSection) -> None:
    """Raises UserError where this model has no such layer."""
    if scorer.kind != "standalone" and not 0 <= scorer.layer <= shape.n_layers:
        raise UserError(f"config.scorer.layer is {scorer.layer}: expected 0 to {shape.n_layers}, the model's layers")


def scoring(
    shape: TransformerConfig,
    scorer: ScorerSection,
    tokens: int,
    segments: int,
    *,
    batch: int = 1,
    stored: Stored = SINGLE,
) -> Work:
    """Scoring prompts of `tokens` in `segments`: reading them through `scorer.layer` layers, then the network."""
    return features(shape, scorer, tokens, segments, batch=batch, stored=stored) + network(
        shape, scorer, tokens, segments, batch=batch
    )


def features(
    shape: TransformerConfig,
    scorer: ScorerSection,
    tokens: int,
    segments: int,
    *,
    batch: int = 1,
    stored: Stored = SINGLE,
) -> Work:
    """What the scorer reads of the model. "cot_influx", and `POOLED` with `apart`, read each segment by itself, the
    weights once for each, none known from a prompt before (`rcp.nn.sight`).
    """
    if scorer.kind == "standalone":
        return NOTHING
    if scorer.kind == "cot_influx" or scorer.apart:
        length = -(-tokens // segments)
        length = length if scorer.apart else min(length, scorer.positions)
        return forward(shape, length, batch=batch, layers=scorer.layer, stored=stored) * segments
    work = forward(shape, tokens, batch=batch, layers=scorer.layer, stored=stored)
    if scorer.kind in POOLED:  # a segment's mean is a product with the matrix of memberships
        work = work + Work(2 * batch * tokens * segments * shape.d_model, 0, 0)
    return work


def network(shape: TransformerConfig, scorer: ScorerSection, tokens: int, segments: int, *, batch: int = 1) -> Work:
    """The scorer's own network, in float32."""
    products, scores = _PRODUCTS[scorer.kind](shape, scorer, tokens, segments)
    rows = batch * (segments if scorer.kind in POOLED else tokens)
    inputs = scorer.width if scorer.kind == "standalone" else shape.d_model
    weights = scorer_parameters(shape, scorer)
    if scorer.kind == "standalone":  # of its embedding only the rows of the prompt
        weights += (batch * tokens - shape.vocab_size) * scorer.width
    deep = 0 if scorer.kind in ("mlp", *POOLED, "cot_influx") else scorer.depth
    width = 1 if scorer.kind == "linear" else scorer.width
    moved = weights + rows * (inputs + width * (2 + 12 * deep))
    return Work(batch * products, batch * OPERATIONS_A_SCORE * scores, moved * FLOAT32)


def scorer_parameters(shape: TransformerConfig, scorer: ScorerSection) -> int:
    """Numbers in the scorer's parameters."""
    w, n, h = scorer.width, scorer.width if scorer.kind == "standalone" else shape.d_model, scorer.heads
    budget = 2 * w * scorer.budget
    if scorer.kind == "cot_influx":
        return 2 * (2 * n + n * w + w + 2 * w + 2 * w + 2)
    if scorer.kind == "mlp":
        return 3 * n * w + w * w + 2 * w + budget
    if scorer.kind == "linear":
        return n * (1 + scorer.products + (scorer.groups if scorer.groups > 1 else 0)) + 2 + 2 * scorer.budget
    if scorer.kind == "pooled":
        return 2 * n * w + 2 * w * w + w * w + w + w + budget
    if scorer.kind == "llmlingua2":
        return n * w + scorer.depth * 12 * w * w + w + budget
    block = h * n * MATCH_DIM + 2 * h + 2 * w * w + 2 * h * w + 4 * w * w + 4 * w * w
    own = shape.vocab_size * w if scorer.kind == "standalone" else 0
    return own + n * w + (len(Role) + MAX_OFFSET) * w + scorer.depth * block + 2 * w + budget


def _pairs(tokens: int) -> int:
    """Pairs (query, key) of the scorer's attention, which is not causal."""
    queries = tokens if tokens <= DENSE_LIMIT else -(-tokens // BLOCK) * BLOCK
    return queries * tokens


def _heads(scorer: ScorerSection, tokens: int, segments: int) -> int:
    """Logits of tokens; means of segments and their logits."""
    return 2 * scorer.width * (tokens + segments * tokens + segments)


def _transformer(shape: TransformerConfig, scorer: ScorerSection, tokens: int, segments: int) -> tuple[int, int]:
    w, h, inputs = scorer.width, scorer.heads, scorer.width if scorer.kind == "standalone" else shape.d_model
    pairs, groups = _pairs(tokens), segments + len(Role)
    match = 2 * tokens * (inputs * h * MATCH_DIM + 2 * w * w) + 2 * pairs * (h * MATCH_DIM + w + h)
    spread = 4 * tokens * groups * h + 4 * tokens * h * w
    within = 2 * tokens * 4 * w * w + 4 * pairs * w
    block = match + spread + within + 2 * tokens * 4 * w * w
    products = 2 * tokens * inputs * w + scorer.depth * block + _heads(scorer, tokens, segments) + _share(scorer)
    return products, 2 * scorer.depth * h * pairs


def _mlp(shape: TransformerConfig, scorer: ScorerSection, tokens: int, segments: int) -> tuple[int, int]:
    w = scorer.width
    products = 2 * tokens * (3 * shape.d_model * w + w * w) + _heads(scorer, tokens, segments)
    return products + _share(scorer), 0


def _pooled(shape: TransformerConfig, scorer: ScorerSection, tokens: int, segments: int) -> tuple[int, int]:
    w, d = scorer.width, shape.d_model
    return 2 * segments * (d * w + w + 2 * w * w + w * w + w) + 2 * d * w + _share(scorer), 0


def _linear(shape: TransformerConfig, scorer: ScorerSection, tokens: int, segments: int) -> tuple[int, int]:
    states = shape.d_model * (1 + (scorer.groups > 1) + scorer.products)
    return 2 * segments * (states + 1) + 4 * scorer.budget, 0


def _encoder(shape: TransformerConfig, scorer: ScorerSection, tokens: int, segments: int) -> tuple[int, int]:
    w, pairs = scorer.width, _pairs(tokens)
    block = 2 * tokens * 12 * w * w + 4 * pairs * w
    products = 2 * tokens * shape.d_model * w + scorer.depth * block + 2 * tokens * (w + segments)
    return products + _share(scorer), scorer.depth * scorer.heads * pairs


def _influx(shape: TransformerConfig, scorer: ScorerSection, tokens: int, segments: int) -> tuple[int, int]:
    """Two MLPs on every token. (The empty position, once for the whole batch where padding counts, is left out.)"""
    state = 2 * (shape.d_model * scorer.width + 2 * scorer.width)
    return state * 2 * tokens + 2 * tokens * segments, 0


def _share(scorer: ScorerSection) -> int:
    """The projection of the budget and its logarithm."""
    return 4 * scorer.width * scorer.budget


_PRODUCTS = {
    "hidden": _transformer,
    "standalone": _transformer,
    "mlp": _mlp,
    "pooled": _pooled,
    "linear": _linear,
    "llmlingua2": _encoder,
    "cot_influx": _influx,
}
"""A kind's (FLOPs of products, scores of attention) for one example."""
