"""The pure step of the stage that draws masks for all training examples and judges each once (`policy.logged`).

A draw costs a reading by the model; what an optimizer step does with it costs next to nothing. So the masks that the
warm-started scorer draws are read once, and written into a table with a row an example, as in `rcp.train.prepare_step`;
the pruner's stage looks up what it would else draw and read anew every step (logged bandit feedback, arXiv 1502.02362;
its ratios to the probabilities under which the masks were drawn are those of the objective "ppo").
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rcp.config import Config
from rcp.nn.pruner import Scores
from rcp.objectives import global_mean
from rcp.train.draws import Drawing, Drawn, keys_of
from rcp.train.networks import Params
from rcp.train.state import Metrics, TrainState, sum_shares
from rcp.train.table import Table, with_rows
from rcp.types import Batch


def empty_log(config: Config) -> Table:
    """Zeros, float32: "budget" [examples]; "log_prob", "reward", "exact" [examples, samples]; "order" (the place of a
    segment in the order drawn) [examples, samples, segments].
    """
    examples, samples = config.data.train_examples, config.policy.samples
    assert examples is not None
    shapes = {"budget": (), "log_prob": (samples,), "reward": (samples,), "exact": (samples,)}
    shapes["order"] = (samples, config.data.max_segments)
    return {name: jnp.zeros((examples, *shape), jnp.float32) for name, shape in shapes.items()}


def make_judge_step(config: Config, drawing: Drawing) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step: the rows of one batch of examples. Metrics: mean reward and exact match of the draws."""

    def step(state: TrainState, frozen: Params, batch: Batch, *, axis_name: str | None) -> tuple[TrainState, Metrics]:
        keys = keys_of(state, batch)
        budget = drawing.budgets(batch, keys)
        scores = drawing.networks.score(frozen, batch, drawing.networks.features({}, frozen, batch), budget)
        drawn = drawing.draw({}, frozen, batch, scores, budget, keys)
        rows = {"log_prob": drawn.log_prob, "reward": drawn.reward, "exact": drawn.exact}
        rows["order"] = drawn.pruned.segment_rank
        rows = {name: jnp.moveaxis(x, 0, 1).astype(jnp.float32) for name, x in rows.items()}
        rows["budget"] = budget.astype(jnp.float32)
        means = {"reward": rows["reward"].mean(axis=1), "exact_match": rows["exact"].mean(axis=1)}
        metrics = {
            name: sum_shares(global_mean(value, batch.weight, axis_name), axis_name) for name, value in means.items()
        }
        return with_rows(state, "logged", batch, rows, axis_name), metrics

    return step


def drawn_of(rows: Table, drawing: Drawing, batch: Batch) -> tuple[Drawn, Int[Array, " batch"]]:
    """The draws and budgets of a batch from its rows of the table."""
    rows = {name: jnp.moveaxis(x, 1, 0) if x.ndim > 1 else x for name, x in rows.items()}
    budget = rows["budget"].astype(jnp.int32)
    # Whatever decided the order, the best by the places in it are the same mask.
    tokens = jnp.zeros(batch.role.shape, jnp.float32)
    pruned, _ = jax.vmap(lambda order: drawing.prune(Scores(tokens, -order), batch, budget))(rows["order"])
    return Drawn(pruned, rows["log_prob"], rows["reward"], rows["exact"] > 0.5), budget
