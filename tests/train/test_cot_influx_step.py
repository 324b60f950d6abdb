"""CoT-Influx's training step on a random model: REINFORCE on its reward alone brings the length to the window."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcp.config_file import from_dict
from rcp.nn.influx import InfluxConfig, InfluxScorer, shot_states
from rcp.train.draws import Drawing
from rcp.train.networks import Networks
from rcp.train.optim import make_optimizer
from rcp.train.state import new_state
from rcp.train.step import make_pruner_step
from tests.tiny import Prompt, batch_of, tiny_model
from tests.train.test_step import QUICK

ROWS, STEPS, CONTEXT, WINDOW = 16, 60, 6 * 12 + 8, 44
PROMPT = Prompt((12,) * 6 + (8,), forced=tuple((6, place) for place in range(8)))


def trained() -> list[dict[str, float]]:
    """The metrics of each step."""
    config = from_dict(
        {
            "objectives": {"reinforce": 1.0},
            "policy": {"samples": 2, "baseline": "moving_average", "baseline_decay": 0.8},
            "budget": {"granularity": "independent", "keep_tokens": WINDOW},
            "reward": {"kind": "cot_influx", "window": WINDOW},
            "scorer": {"kind": "cot_influx"},
            "optim": {"learning_rate": 0.005, "schedule": "constant"},
        }
    )
    model, frozen = nnx.split(tiny_model(layers=1))
    scorer, params = nnx.split(InfluxScorer(InfluxConfig(16, 32, positions=16), nnx.Rngs(0)))
    params, frozen = {"pruner": nnx.to_pure_dict(params)}, {"model": nnx.to_pure_dict(frozen)}
    optimizer = make_optimizer(config.optim, STEPS, ("pruner",))
    networks = Networks(model, scorer, partial(shot_states, layer=1, positions=16), 1)
    step = make_pruner_step(config, networks, optimizer, Drawing(config, networks, lambda whole: (whole, whole)))
    compiled = jax.jit(lambda state, batch: step(state, frozen, batch, axis_name=None), compiler_options=QUICK)
    state = new_state(0, params, optimizer.init(params), {"baseline": jnp.zeros(())})
    batch, rows = jax.tree.map(jnp.asarray, batch_of((PROMPT,) * ROWS, CONTEXT + 4, 7)), []
    for _ in range(STEPS):
        state, metrics = compiled(state, batch)
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows


def test_the_length_goes_to_the_window():
    """At first .88 of the candidates and of their tokens are kept, and all that is forced; at last about T tokens."""
    rows = trained()
    assert not any(row["skipped"] for row in rows)
    assert rows[0]["kept"] == pytest.approx(8 + 72 * 0.88 * (3 + 9 * 0.88) / 12, rel=0.1)
    first, last = ({name: np.mean([row[name] for row in part]) for name in rows[0]} for part in (rows[:3], rows[-10:]))
    assert abs(last["kept"] - WINDOW) < 8 < abs(first["kept"] - WINDOW)
    assert last["reward"] > first["reward"] + 0.02
    assert last["survived"] < first["survived"] - 1
