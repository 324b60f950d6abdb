"""The reward of a model behind an endpoint: the drawn masks' texts go out of the compiled step, verdicts come back.

Black-box reinforcement: the model that is rewarded gives neither gradients nor, mostly, likelihoods. The step hands its
compacted prompts to the host (`jax.io_callback`) once a step and device and waits for the answers: that is what it
costs, and nothing of it is in the program of a run with a reader of its own.

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


Judge = Callable[[Batch], Verdict]
"""From compacted prompts, each array [samples, batch, ...], to what the endpoint makes of them."""


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

    def __call__(self, prompts: Batch) -> Verdict:
        """To be traced inside the step; `prompts` as in `Judge`."""
        shape = prompts.tokens.shape[:2]
        number = jax.ShapeDtypeStruct(shape, jnp.float32)
        parts = (prompts.tokens, prompts.role, prompts.segment, prompts.index, prompts.weight)
        exact, nll, trouble = io_callback(self._ask, (jax.ShapeDtypeStruct(shape, jnp.bool_), number, number), *parts)
        return Verdict(exact, nll if self._likely else None, trouble)

    def _ask(self, *parts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        arrays = [np.asarray(part) for part in parts]
        shape = arrays[0].shape[:2]
        if self.failure is None:
            try:
                return (*self.judge(*arrays), np.zeros(shape, np.float32))
            except UserError as error:
                self.failure = error
        return np.zeros(shape, bool), np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)

    def judge(
        self, tokens: np.ndarray, role: np.ndarray, segment: np.ndarray, index: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact match bool and the answers' NLL float32, both [samples, batch]; rows of weight 0 are not sent."""
        shape = tokens.shape[:2]
        flat = [array.reshape(-1, *array.shape[2:]) for array in (tokens, role, segment, index, weight)]
        real = np.flatnonzero(flat[4] > 0)
        tokens, role, segment, index, weight = (array[real] for array in flat)
        none = np.zeros((len(real), 0))
        texts = self.texts()
        sent = texts.of(Batch(tokens, role, segment, none, none, weight, index, index))
        asked, examples = [prompt.text for prompt in sent], [texts.example(i) for i in index]
        exact, nll = np.zeros(shape, bool), np.zeros(shape, np.float32)
        said = self.client.texts(asked)
        exact.reshape(-1)[real] = [self._check(one[0], example) for one, example in zip(said, examples)]
        if self._likely:
            found = self.client.nll(asked, [example.answer for example in examples])
            if found is None:
                raise UserError(
                    "config.reward.endpoint.logprobs is set, but the endpoint gives no log-probabilities of what it is "
                    "sent: take it back (the likelihood is then our own model's) or set config.reward.likelihood = 0"
                )
            nll.reshape(-1)[real] = found
        return exact, nll

    def texts(self) -> Texts:
        with self._lock:  # devices call at the same time
            if self._texts is None:
                self._texts = Texts(self._encoded(), self._tokenizer)
            return self._texts
