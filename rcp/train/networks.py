"""Model and scorer without their parameters, and what a training run asks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from rcp.nn.layout import without
from rcp.nn.lengths import of_own_length
from rcp.nn.lora import apply_lora
from rcp.nn.pruner import Scores
from rcp.nn.reader import Reading, read
from rcp.nn.transformer import Transformer
from rcp.types import Batch, Role

Params = dict[str, Any]
View = Callable[[Transformer, Batch], Array]


def model_params(params: Params, frozen: Params) -> Params:
    """The model's parameters, trained ones first, with low-rank updates where there are some."""
    weights = params["model"] if "model" in params else frozen["model"]
    return apply_lora(weights, params["lora"]) if "lora" in params else weights


@dataclass(frozen=True)
class Networks:
    """The two graphs, without their parameters.

    `view`: what the scorer reads of the model; None for a scorer that stands alone. `blind`: the scorer, and what it
    reads, do not see the question.
    """

    model: nnx.GraphDef
    scorer: nnx.GraphDef
    view: View | None
    max_answer: int
    blind: bool = False

    def model_of(self, params: Params, frozen: Params) -> Any:
        return nnx.merge(self.model, model_params(params, frozen))

    def features(self, params: Params, frozen: Params, batch: Batch) -> Array | None:
        """The scorer's view of a batch, without gradient; looked up where a stage before has computed it once."""
        if "states" in frozen:
            return frozen["states"]["features"][batch.index]
        if self.view is None:
            return None
        return jax.lax.stop_gradient(self.view(self.model_of(params, frozen), self._seen(batch)))

    def score(self, params: Params, batch: Batch, features: Array | None, budget: Array | None) -> Scores:
        return nnx.merge(self.scorer, params["pruner"])(self._seen(batch), features, budget)

    def _seen(self, batch: Batch) -> Batch:
        """What the scorer may look at of a batch."""
        return without(batch, Role.QUESTION) if self.blind else batch

    def read(
        self, params: Params, frozen: Params, batch: Batch, keep: Array | None = None, *, log_probs: bool = False
    ) -> Reading:
        """Whole or compacted prompts; or through a mask, with positions counted over what it keeps, as if dropped."""
        positions = None if keep is None else jnp.maximum(jnp.cumsum(keep > 0, axis=1, dtype=jnp.int32) - 1, 0)
        model = self.model_of(params, frozen)
        return read(model, batch, max_answer=self.max_answer, keep=keep, positions=positions, log_probs=log_probs)

    def read_compacted(self, params: Params, frozen: Params, batch: Batch) -> Reading:
        """Compacted prompts, without the padding that none of them needs."""
        return of_own_length(lambda weights, prompts: self.read(weights[0], weights[1], prompts))(
            (params, frozen), batch
        )
