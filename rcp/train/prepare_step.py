"""The pure step of the stage that computes, once, what depends on the training examples and the frozen model alone.

Keep-labels that cost a reading a segment, and the states that `POOLED` scorers read, do not change while the pruner
learns. The stage writes them into a table with a row an example, which is its "parameters": so it is saved, resumed and
spread over devices as any other training, and the stages after it look their rows up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from rcp.config import Config, DataConfig, LabelConfig, ObjectiveConfig, ScorerSection
from rcp.nn.layout import segment_exists
from rcp.nn.scorer import POOLED
from rcp.objectives import global_mean
from rcp.train.labels import segment_gains
from rcp.train.lengths import Lengths
from rcp.train.networks import Networks, Params
from rcp.train.state import Metrics, TrainState, sum_shares
from rcp.train.table import Table, with_rows
from rcp.types import Batch


def empty_table(config: Config, width: int) -> Table:
    """Zeros: "gains" float32 [examples, segments], "features" float32 [examples, segments + 1, width], where used."""
    examples, segments = config.data.train_examples, config.data.max_segments
    assert examples is not None
    table = {}
    if _labelled(config):
        table["gains"] = jnp.zeros((examples, segments), jnp.float32)
    if config.scorer.kind in POOLED:
        table["features"] = jnp.zeros((examples, segments + 1, width), jnp.float32)
    return table


def decides(config: Config) -> Config:
    """What of a config decides the table, all else at its default; of a model that is not trained in the run itself."""
    d, s = config.data, config.scorer
    data = DataConfig(
        batch_size=d.batch_size,  # in how many steps it is filled
        lengths=d.lengths,
        max_segments=d.max_segments,
        max_answer=d.max_answer,
        train_examples=d.train_examples,
        overlong=d.overlong,
    )
    seen = {"kind": POOLED[0], "apart": s.apart, "layer": s.layer, "question": s.question}
    return replace(
        Config(),
        task=config.task,
        model=config.model,
        data=data,
        objectives={"bce": ObjectiveConfig()} if _labelled(config) else {},
        labels=LabelConfig(source=config.labels.source) if _labelled(config) else LabelConfig(),
        scorer=ScorerSection(**seen) if s.kind in POOLED else ScorerSection(),
    )


def make_prepare_step(
    config: Config, networks: Networks, lengths: Lengths
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step: the rows of one batch of examples. Metric `gain_spread`: their gains' deviation in an example, nats."""

    def step(state: TrainState, frozen: Params, batch: Batch, *, axis_name: str | None) -> tuple[TrainState, Metrics]:
        def read(prompts: Batch) -> Any:
            return networks.read_compacted({}, frozen, prompts)

        rows, metrics = {}, {}
        if _labelled(config):
            _, single = lengths(batch.role.shape[1])
            gains = segment_gains(config.labels, batch, read, single)
            assert gains is not None
            rows["gains"] = gains
            spread = jnp.std(gains, axis=1, where=segment_exists(batch))
            metrics["gain_spread"] = sum_shares(global_mean(spread, batch.weight, axis_name), axis_name)
        if config.scorer.kind in POOLED:
            rows["features"] = networks.features({}, frozen, batch)
        return with_rows(state, "prepared", batch, rows, axis_name), metrics

    return step


def _labelled(config: Config) -> bool:
    """Whether keep-labels are used that the model has to read for."""
    used = config.objectives.keys() | (config.warm_start.objectives.keys() if config.warm_start.steps else set())
    return "bce" in used and config.labels.source in ("alone", "leave_one_out")
