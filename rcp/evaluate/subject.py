"""What is evaluated: a reader and its task, with a trained pruner or without one, and the identity of its numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from rcp.config import Config
from rcp.data.pipeline import EncodedTask, eval_batches
from rcp.data.tasks import Task
from rcp.infer.trained import Trained
from rcp.nn.reader import Reading, read
from rcp.policies import Learned, Policy
from rcp.pretrained import Pretrained, load
from rcp.train.build import make_task
from rcp.types import Batch, Example, Tokenizer, UserError

STATIC = ("length", "max_answer")
"""Fields of policies that are static bounds on shapes and change no number."""
CHOICES = ("keep_rates", "keep_tokens", "methods", "examples", "first", "split")
CHOICES += ("batch_size", "bootstrap", "shown", "runs")
DRAW = ("draw", "seed")
"""Keys of `eval` that choose budgets, methods and prompts, which cells know apart, or change no number; and those that
only a trained pruner heeds (`Learned.identity`)."""
SAMPLES, ENDPOINT = ("samples", "temperature", "top_p"), ("reader", "endpoint")
"""Keys of `eval` that matter only with several samples, and with a reader behind an endpoint."""
SPEED = ("api_key_env", "concurrency", "timeout", "retries")
"""Keys of `eval.endpoint` that change no number."""


@dataclass(frozen=True)
class Subject:
    """Attributes:
    reader: fingerprint of the reader's weights.
    read: `read(weights, batch)`, pure.
    model_of: from the weights to the reader as an NNX module.
    ours: the trained pruner, or None.
    """

    config: Config
    task: Task
    tokenizer: Tokenizer
    weights: Any = field(repr=False)
    reader: str
    read: Callable[[Any, Batch], Reading]
    model_of: Callable[[Any], Any]
    ours: Learned | None = None

    @cached_property
    def positions(self) -> int:
        """The longest prompt that the reader, and what scores with its states, can read, in tokens."""
        return self.model_of(self.weights).config.max_positions

    def examples(self) -> tuple[list[Batch], dict[int, Example]]:
        """The examples that the config asks for, in batches of one length."""
        config = self.config
        return eval_batches(
            self.task,
            self.tokenizer,
            config.eval.split,
            config.eval.examples,
            batch_size=config.eval.batch_size,
            lengths=config.data.lengths,
            max_segments=config.data.max_segments,
            max_answer=config.data.max_answer,
            overlong=config.data.overlong,
            positions=self.positions,
            first=config.eval.first,
        )

    def encoded(self) -> EncodedTask:
        """The same examples, piece by piece, and those before the first of them."""
        config = self.config
        return EncodedTask(
            self.task,
            self.tokenizer,
            config.eval.split,
            config.eval.first + config.eval.examples,
            lengths=config.data.lengths,
            max_segments=config.data.max_segments,
            max_answer=config.data.max_answer,
            overlong=config.data.overlong,
            positions=self.positions,
        )

    def identity(self, policy: Policy) -> dict[str, Any]:
        """Everything that decides a policy's numbers but prompts, budgets and the code: fit for json."""
        config = self.config
        found: dict[str, Any] = {
            "method": policy.name,
            "reader": self.reader,
            "dtype": config.model.dtype,
            "granularity": policy.granularity or config.budget.granularity,
            "cut": config.budget.cut,
            **self._eval_keys(),
        }
        if policy.draws or config.eval.samples > 1:
            found["seed"] = config.seed
        if isinstance(policy, Learned):
            return found | dict(policy.identity)
        for entry in fields(policy):
            value = getattr(policy, entry.name)
            if isinstance(value, bool | int | float | str) and entry.name not in STATIC:
                found[f"policy.{entry.name}"] = value
            elif entry.name == "params":
                found["policy.params"] = digest_of(value)
        return found

    def _eval_keys(self) -> dict[str, Any]:
        """Those keys of the section eval that decide numbers."""
        chosen = self.config.eval
        idle = (
            CHOICES + DRAW + (SAMPLES if chosen.samples == 1 else ()) + (ENDPOINT if chosen.reader == "model" else ())
        )
        found = {f"eval.{key}": value for key, value in asdict(chosen).items() if key not in idle}
        for key in SPEED if "eval.endpoint" in found else ():
            del found["eval.endpoint"][key]
        return found


def of_run(trained: Trained) -> Subject:
    """The reader and the pruner of a trained run."""
    config, networks = trained.config, trained.build.networks
    params, frozen = trained.weights
    origin = trained.build.stages[-1].weights
    own = {name: part for name, part in params.items() if name in ("model", "lora")}
    reader = origin if origin and not own else digest_of((own, frozen.get("model")))
    return Subject(
        config,
        trained.build.task,
        trained.build.tokenizer,
        trained.weights,
        reader,
        trained.read,
        lambda weights: networks.model_of(*weights),
        learned(trained, draw=config.eval.draw, seed=config.eval.seed),
    )


def learned(trained: Trained, **options: Any) -> Learned:
    """A run's pruner as a policy; `options` are fields of it."""
    scorer = trained.config.scorer
    identity = {"pruner": digest_of(trained.weights[0]["pruner"]), "scorer": asdict(scorer), **options}
    score = partial(jax.jit(trained.score), trained.weights)
    return Learned(score=score, look=trained.look(), told=scorer.budget, identity=identity, **options)


def of_reader(config: Config, found: Pretrained | None = None) -> Subject:
    """A published model and a task alone: what the methods that train nothing need.

    `found`: the model, where it is loaded already.

    Raises:
      UserError: weights that are not there, an unknown task; a model that is to be trained from scratch.
    """
    if config.model.name == "scratch":
        raise UserError('config.model.name is "scratch": without a run there is no such model; name a published one')
    task = make_task(config)
    found = found or load(config.model.name, dtype=config.model.dtype)
    graph, state = nnx.split(found.model)

    def model_of(weights: Any) -> Any:
        return nnx.merge(graph, weights)

    def reading(weights: Any, batch: Batch) -> Reading:
        return read(model_of(weights), batch, max_answer=config.data.max_answer)

    weights = jax.device_put(nnx.to_pure_dict(state))
    return Subject(config, task, found.tokenizer, weights, found.fingerprint, reading, model_of)


def digest_of(tree: Any) -> str:
    """Changes when a path or a value of a tree of arrays does (16 hex digits)."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def described(value: Any) -> Any:
    """A value as json has it: dataclasses by their fields, what has a `digest` by that, arrays by one of ours."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if (own := getattr(value, "digest", None)) is not None:
        return own
    if is_dataclass(value):
        of_fields = {field.name: described(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__name__, **of_fields}
    if isinstance(value, tuple | list):
        return [described(item) for item in value]
    return digest_of(value)
