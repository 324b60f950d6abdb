"""The reward of a model behind an endpoint: the drawn masks go out of the compiled step, verdicts come back.

Black-box reinforcement: the model that is rewarded gives neither gradients nor, mostly, likelihoods. The step hands its
masks to the host (`jax.experimental.io_callback`), once a step and device, and waits while their texts are answered:
that is what it costs, and nothing of it is in the program of a run with a reader of its own.

Only the bits of the masks travel. An operand of some 100 KB and more is copied by the thread pool that runs the step,
and where several host devices wait for one another no thread of it is left: the step would never end. For the same
reason XLA ends a process whose host devices have waited 40 s for one: where a server is slower than that, run on one
device or raise `XLA_FLAGS=--xla_cpu_collective_call_terminate_timeout_seconds`.

What a server answers need not repeat, so such a run resumed from a checkpoint need not end as one left alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float

from rcp.config import Config
from rcp.data.pipeline import EncodedTask
from rcp.data.tasks import Task
from rcp.data.text import Texts
from rcp.endpoint.client import Client
from rcp.types import Batch, Tokenizer, UserError


class Verdict(NamedTuple):
    """On M drawn prompts of each example. `nll_sum`: of the gold answer, nats; None where it is not asked for.

    `trouble`: 0, or NaN where no answer could be had: added to a reward it makes the step one that is skipped.
    """

    exact: Bool[Array, "samples batch"]
    nll_sum: Float[Array, "samples batch"] | None
    trouble: Float[Array, "samples batch"]


Judge = Callable[[Array, Batch], Verdict]
"""From keep masks bool [samples, batch, tokens] over the prompts of a batch to what the endpoint makes of them."""


class Outside:
    """The model behind `config.reward.endpoint`, as a judge of a step's draws.

    Attributes:
      failure: why a call failed. An error raised inside a step would leave the other devices waiting for this one, so
        the step goes on with `Verdict.trouble`, and the loop that runs it raises what it finds here.
    """

    def __init__(self, config: Config, task: Task, tokenizer: Tokenizer, encoded: Callable[[], EncodedTask]):
        self.client = Client(config.reward.endpoint)
        self.failure: UserError | None = None
        self._likely = config.reward.endpoint.logprobs and config.reward.likelihood != 0
        self._check, self._tokenizer, self._encoded, self._texts = task.check, tokenizer, encoded, None
        self._lock = threading.Lock()

    def __call__(self, keep: Bool[Array, "samples batch tokens"], batch: Batch) -> Verdict:
        """To be traced inside the step; see `Judge`."""
        number = jax.ShapeDtypeStruct(keep.shape[:2], jnp.float32)
        result = (jax.ShapeDtypeStruct(keep.shape[:2], jnp.bool_), number, number)
        bits = [jnp.packbits(mask, axis=-1) for mask in keep]
        exact, nll, trouble = io_callback(self._ask, result, batch.index, batch.weight, *bits)
        return Verdict(exact, nll if self._likely else None, trouble)

    def _ask(self, index: Any, weight: Any, *bits: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keep = np.stack([np.unpackbits(np.asarray(one), axis=-1).astype(bool) for one in bits])
        shape = keep.shape[:2]
        if self.failure is None:
            try:
                return (*self.judge(keep, np.asarray(index), np.asarray(weight)), np.zeros(shape, np.float32))
            except UserError as error:
                self.failure = error
        return np.zeros(shape, bool), np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)

    def judge(self, keep: np.ndarray, index: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact match bool and the answers' NLL float32, both [samples, batch]; rows of weight 0 are not sent."""
        texts, exact = self.texts(), np.zeros(keep.shape[:2], bool)
        nll = np.zeros(exact.shape, np.float32)
        places = [(sample, row) for sample in range(len(keep)) for row in np.flatnonzero(weight > 0)]
        asked = [texts.of_mask(index[row], keep[sample, row]).text for sample, row in places]
        examples = [texts.example(index[row]) for _, row in places]
        for place, said, example in zip(places, self.client.texts(asked), examples):
            exact[place] = self._check(said[0], example)
        if self._likely:
            found = self.client.nll(asked, [example.answer for example in examples])
            if found is None:
                raise UserError(
                    "config.reward.endpoint.logprobs is set, but the endpoint gives no log-probabilities of what it is "
                    "sent: take it back (the likelihood is then our own model's) or set config.reward.likelihood = 0"
                )
            for place, value in zip(places, found):
                nll[place] = value
        return exact, nll

    def texts(self) -> Texts:
        with self._lock:  # devices call at the same time
            if self._texts is None:
                self._texts = Texts(self._encoded(), self._tokenizer)
            return self._texts
