"""The pure steps of the stages that compute, once, what depends on the training examples and the frozen model alone.

Keep-labels that cost a reading a segment ("labels"), and the states that `POOLED` scorers read ("states"), do not
change while the pruner learns. Each stage writes its own into a table with a row an example, which is its "parameters":
so it is saved, resumed and spread over devices as any other training, and the stages after it look their rows up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp

from rcp.config import Config, DataConfig, LabelConfig, ScorerSection
from rcp.nn.layout import segment_exists
from rcp.nn.reader import Reading
from rcp.nn.scorer import POOLED
from rcp.objectives import global_mean
from rcp.train.labels import READ_FOR, segment_gains
from rcp.train.lengths import Lengths
from rcp.train.networks import Networks, Params
from rcp.train.state import Metrics, Step, TrainState, sum_shares
from rcp.train.step import needs_of
from rcp.train.table import Table, with_rows
from rcp.types import Batch


@dataclass(frozen=True)
class Prepared:
    """One of the tables.

    Attributes:
      name: of the table and of the stage that fills it.
      used: whether the stages after it look something up in it.
      empty: the table with zeros; the second argument is the model's width.
      make_step: of the stage; `lengths` as in `Build.pruned_lengths`.
      decides: what of a config decides the table, all else at its default.
    """

    name: str
    used: Callable[[Config], bool]
    empty: Callable[[Config, int], Table]
    make_step: Callable[[Config, Networks, Lengths], Step]
    decides: Callable[[Config], Config]


def _labelled(config: Config) -> bool:
    """Whether keep-labels are used that the model has to read for."""
    warm = config.warm_start.objectives if config.warm_start.steps else {}
    used = replace(config, objectives=config.objectives | warm)
    return "labels" in needs_of(used) and config.labels.source in READ_FOR


def _pooled(config: Config) -> bool:
    return config.scorer.kind in POOLED


def _no_gains(config: Config, width: int) -> Table:
    """Zeros: "gains" float32 [examples, segments]."""
    return {"gains": jnp.zeros((_examples(config), config.data.max_segments), jnp.float32)}


def _no_features(config: Config, width: int) -> Table:
    """Zeros: "features" float32 [examples, segments + 1, width]."""
    return {"features": jnp.zeros((_examples(config), config.data.max_segments + 1, width), jnp.float32)}


def _examples(config: Config) -> int:
    assert config.data.train_examples is not None
    return config.data.train_examples


def make_label_step(config: Config, networks: Networks, lengths: Lengths) -> Step:
    """Fills in the gains of one batch of examples. Metric `gain_spread`: their deviation in an example, nats."""

    def step(state: TrainState, frozen: Params, batch: Batch, *, axis_name: str | None) -> tuple[TrainState, Metrics]:
        def read(prompts: Batch) -> Reading:
            return networks.read({}, frozen, prompts)

        _, single = lengths(batch.role.shape[1])
        gains = segment_gains(config.labels, batch, read, single)
        assert gains is not None
        spread = jnp.std(gains, axis=1, where=segment_exists(batch))
        metrics = {"gain_spread": sum_shares(global_mean(spread, batch.weight, axis_name), axis_name)}
        return with_rows(state, "labels", batch, {"gains": gains}, axis_name), metrics

    return step


def make_states_step(config: Config, networks: Networks, lengths: Lengths) -> Step:
    """Fills in the scorer's view of one batch of examples. Metric `state_size`: its root mean square in an example."""

    def step(state: TrainState, frozen: Params, batch: Batch, *, axis_name: str | None) -> tuple[TrainState, Metrics]:
        features = networks.features({}, frozen, batch)
        assert features is not None
        size = jnp.sqrt(jnp.mean(jnp.square(features), axis=(1, 2)))
        metrics = {"state_size": sum_shares(global_mean(size, batch.weight, axis_name), axis_name)}
        return with_rows(state, "states", batch, {"features": features}, axis_name), metrics

    return step


def _decides_both(config: Config) -> Config:
    """The examples and the model."""
    d = config.data
    data = DataConfig(
        batch_size=d.batch_size,  # in how many steps a table is filled
        lengths=d.lengths,
        max_segments=d.max_segments,
        max_answer=d.max_answer,
        train_examples=d.train_examples,
        overlong=d.overlong,
    )
    return replace(Config(), task=config.task, model=config.model, data=data)


def _decides_labels(config: Config) -> Config:
    return replace(_decides_both(config), labels=LabelConfig(source=config.labels.source))


def _decides_states(config: Config) -> Config:
    s = config.scorer
    seen = ScorerSection(kind=POOLED[0], apart=s.apart, layer=s.layer, question=s.question)
    return replace(_decides_both(config), scorer=seen)


PREPARED = (
    Prepared("labels", _labelled, _no_gains, make_label_step, _decides_labels),
    Prepared("states", _pooled, _no_features, make_states_step, _decides_states),
)
"""In the order of their stages."""
