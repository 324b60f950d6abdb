"""The sections of a run's configuration: frozen dataclasses with their defaults, and the checks of ranges and names.

`rcp.config_file` fills them from a python file and command-line flags. This needs neither jax nor ml_collections.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from rcp.types import UserError

OBJECTIVES = ("nll", "kl", "bce", "reinforce", "ppo", "entropy", "budget")
"""Names that `objectives` may hold; `rcp.objectives` has one function for each."""
METHODS = ("full", "none", "shorter", "random", "first", "last", "perplexity", "bm25", "oracle", "ours")
"""Names that `eval.methods` may hold."""

Granularity = Literal["token", "segment", "two_stage"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class TaskConfig:
    """`name` picks the task; every other key of the section goes to the task's own dataclass (see `fill`)."""

    name: str = "facts"
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """`lengths` are the static lengths a prompt is padded to, in tokens, ascending; longer prompts are an error."""

    batch_size: int = 16
    lengths: tuple[int, ...] = (256,)
    max_segments: int = 32
    max_answer: int = 16
    train_examples: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """`name` is a hub id, folder, GGUF file, or "scratch": a model of the dimensions below, trained in the reader
    stage. `vocab_size` None takes the tokenizer's.
    """

    name: str = "scratch"
    dtype: Literal["float32", "bfloat16"] = "float32"
    train: Literal["frozen", "lora", "full"] = "frozen"
    lora_rank: int = 8
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 4
    head_dim: int = 16
    d_ff: int = 256
    rope_theta: float = 10_000.0
    max_positions: int = 4096
    vocab_size: int | None = None


@dataclass(frozen=True)
class ReaderStageConfig:
    """A first stage that trains the model itself on full contexts, before the pruner. 0 steps: no such stage.

    `lengths` and `batch_size` None take those of `data`; `task` overrides keys of the task section for this stage.
    """

    steps: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    batch_size: int | None = None
    lengths: tuple[int, ...] | None = None
    task: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScorerConfig:
    """`layer`: how many of the frozen model's layers the "hidden" and "mlp" scorers read through."""

    kind: Literal["hidden", "mlp", "standalone"] = "hidden"
    layer: int = 1
    width: int = 128
    depth: int = 1
    heads: int = 4


@dataclass(frozen=True)
class BudgetConfig:
    """How much of the context is kept. In training each example draws one of `keep_rates` (fractions of its context
    tokens); `keep_tokens`, if set, wins over them.
    """

    granularity: Granularity = "segment"
    keep_rates: tuple[float, ...] = (0.5,)
    keep_tokens: int | None = None


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weight of one objective: `weight` times a factor that goes from `begin` to `end` over `steps` training steps.

    The factor of schedule "constant" is 1; `steps` 0 means the whole run. In a config a plain number means a constant.
    """

    weight: float = 1.0
    schedule: Schedule = "constant"
    begin: float = 1.0
    end: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class PolicyConfig:
    """The reinforcement objectives: masks drawn an example, baseline, clipped ratio.

    `normalise` divides advantages by their deviation within the example (GRPO). `updates`: optimizer steps taken on the
    same draws, rewards and labels, which cost the model's forward passes.
    """

    samples: int = 4
    baseline: Literal["none", "self_critical", "moving_average", "leave_one_out"] = "leave_one_out"
    baseline_decay: float = 0.95
    normalise: bool = False
    clip: float = 0.2
    updates: int = 1


@dataclass(frozen=True)
class RelaxConfig:
    """The differentiable mask of the objectives "nll", "kl" and "budget"; see `rcp.nn.pruner.relax`.

    "sigmoid" is a soft budget: it holds on average, by the objective "budget" and its Lagrange multiplier. `noise`:
    draw Gumbel noise, else relax the deterministic mask.
    """

    method: Literal["straight_through", "threshold", "successive", "sigmoid"] = "straight_through"
    temperature: float = 1.0
    noise: bool = True


@dataclass(frozen=True)
class LabelConfig:
    """Where the keep-labels of the objective "bce" come from; see `rcp.train.labels`.

    "support": the task's own. "leave_one_out": how much the answer loses without a segment. "alone": how much it gains
    from a segment alone. The last two become soft labels sigmoid(`sharpness` * (z - `above`)), z the gain standardised
    within the example.
    """

    source: Literal["support", "leave_one_out", "alone"] = "support"
    sharpness: float = 4.0
    above: float = 1.0


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the parts of the reward: exact match, 1 / (1 + NLL), share of the context used (subtracted)."""

    exact_match: float = 1.0
    likelihood: float = 1.0
    length: float = 0.0


@dataclass(frozen=True)
class OptimConfig:
    """One optax chain. The model's and the dual variable's learning rates, where None, follow `learning_rate`.

    `warmup_steps` counts optimizer updates, of which a training step takes `policy.updates`, over `accumulate`.
    `max_nonfinite`: consecutive skipped steps after which the run stops.
    """

    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    accumulate: int = 1
    b1: float = 0.9
    b2: float = 0.999
    model_learning_rate: float | None = None
    dual_learning_rate: float | None = None
    max_nonfinite: int = 10


@dataclass(frozen=True)
class TrainConfig:
    """`keep`: how many checkpoints are kept."""

    steps: int = 1000
    log_every: int = 10
    checkpoint_every: int = 200
    keep: int = 2


@dataclass(frozen=True)
class ParallelConfig:
    """`devices` 0 means all. `shard_params` (mesh only) splits large parameters over the devices."""

    mode: Literal["pmap", "mesh"] = "pmap"
    devices: int = 0
    shard_params: bool = False


@dataclass(frozen=True)
class EvalConfig:
    """What `rcp eval` compares. `bootstrap`: resamples behind the 95 % intervals; `shown`: examples on the page.

    `decode`: 0 takes as exact match that every token of the gold answer is the greedy one; above 0, so many tokens are
    decoded greedily and the task judges the text.
    """

    keep_rates: tuple[float, ...] = (1.0, 0.5, 0.25)
    methods: tuple[str, ...] = METHODS
    examples: int = 200
    batch_size: int = 16
    bootstrap: int = 1000
    shown: int = 8
    decode: int = 0
    split: Literal["train", "validation", "test"] = "test"


@dataclass(frozen=True)
class Config:
    seed: int = 0
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    reader: ReaderStageConfig = field(default_factory=ReaderStageConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    relax: RelaxConfig = field(default_factory=RelaxConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def nearest(word: str, known: Iterable[str], path: str = "") -> str:
    """The end of an error message: the known name nearest to `word`, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    prefix = f"{path}." if path else ""
    return f"; did you mean {prefix}{near[0]}?" if near else f"; known here: {', '.join(names)}"


def check(config: Config, where: Callable[[str], str]) -> None:
    """Checks ranges and names; a `UserError` names the key, where it was written (`where(key)`), what was expected."""

    def need(ok: bool, key: str, expected: str) -> None:
        if not ok:
            value: Any = config
            for part in key.split("."):
                value = value[part] if isinstance(value, dict) else getattr(value, part)
            raise UserError(f"config key config.{key}{where(key)} should be {expected}, not {value!r}")

    for key in ("budget.keep_rates", "eval.keep_rates"):
        section, name = key.split(".")
        rates = getattr(getattr(config, section), name)
        need(bool(rates) and all(0.0 < rate <= 1.0 for rate in rates), key, "keep rates in (0, 1]")
    need(config.budget.keep_tokens is None or config.budget.keep_tokens > 0, "budget.keep_tokens", "above 0")
    for name in config.objectives:
        if name not in OBJECTIVES:
            raise UserError(
                f"unknown objective config.objectives.{name}{where('objectives.' + name)}{nearest(name, OBJECTIVES)}"
            )
    for name in config.eval.methods:
        if name not in METHODS:
            raise UserError(
                f"unknown method {name!r} in config.eval.methods{where('eval.methods')}{nearest(name, METHODS)}"
            )
    for key in ("train.steps", "reader.steps", "optim.warmup_steps", "reader.warmup_steps", "seed", "parallel.devices"):
        need(_get(config, key) >= 0, key, "0 or more")
    positive = (
        "data.batch_size data.max_segments data.max_answer train.log_every train.checkpoint_every train.keep "
        "policy.samples policy.updates optim.accumulate optim.max_nonfinite eval.examples eval.batch_size "
        "eval.bootstrap model.lora_rank model.n_layers model.d_model model.n_heads model.n_kv_heads model.head_dim "
        "model.d_ff model.max_positions scorer.width scorer.heads relax.temperature"
    )
    for key in positive.split():
        need(_get(config, key) > 0, key, "above 0")
    for key in ("data.train_examples", "reader.batch_size", "model.vocab_size"):
        need(_get(config, key) is None or _get(config, key) > 0, key, "above 0 or None")
    not_negative = (
        "optim.learning_rate optim.weight_decay optim.clip_norm policy.clip scorer.depth reader.learning_rate "
        "eval.shown eval.decode"
    )
    for key in not_negative.split():
        need(_get(config, key) >= 0, key, "0 or more")
    need(0 <= config.policy.baseline_decay < 1, "policy.baseline_decay", "in [0, 1)")
    for key in ("data.lengths", "reader.lengths"):
        lengths = _get(config, key)
        ascending = lengths is None or (bool(lengths) and lengths[0] > 0 and list(lengths) == sorted(set(lengths)))
        need(ascending, key, "ascending, above 0")
    for name in config.objectives:
        need(config.objectives[name].steps >= 0, f"objectives.{name}.steps", "0 or more")
    if {"reinforce", "ppo"} & config.objectives.keys() and config.policy.baseline == "leave_one_out":
        need(config.policy.samples > 1, "policy.samples", 'above 1 for policy.baseline "leave_one_out"')
    if "reinforce" in config.objectives:
        need(config.policy.updates == 1, "policy.updates", 'with the objective "reinforce" 1 (for more, take "ppo")')
    sharded_pmap = config.parallel.shard_params and config.parallel.mode == "pmap"
    need(not sharded_pmap, "parallel.shard_params", 'false unless parallel.mode is "mesh"')


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
