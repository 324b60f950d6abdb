"""The sections of a run's configuration: frozen dataclasses with their defaults.

`rcp.config_file` fills them from a python file and command-line flags, `rcp.config_check` checks ranges and names. None
of them needs jax or ml_collections.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rcp.config_dynamic import DynamicConfig
from rcp.config_eviction import EvictionConfig

OBJECTIVES = ("nll", "kl", "bce", "reinforce", "ppo", "entropy", "budget")
"""Names that `objectives` may hold; `rcp.objectives` has one function for each."""
DEFAULT_METHODS = ("full", "none", "shorter", "random", "first", "last", "perplexity", "bm25", "oracle", "ours")
"""What `eval.methods` holds where a configuration does not say: comparisons that cost at most one reading."""
METHODS = (*DEFAULT_METHODS, "embedding", "mmr", "contrast", "llmlingua", "selective", "alone", "greedy")
"""Names that `eval.methods` may hold."""

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class TaskConfig:
    """`name` picks the task; every other key of the section goes to the task's own dataclass (see `fill`)."""

    name: str = "facts"
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """`lengths` are the static lengths a prompt is padded to, in tokens, ascending. `overlong`: what a prompt over the
    longest is; "drop_segments" leaves out its last segments that are neither needed nor forced.

    A curriculum: the training examples, in the task's order, are cut into `phases` equal parts. The first is gone over
    `repeats` times, shuffled anew each time, then the second, and so on; then all again from the first.
    """

    batch_size: int = 16
    lengths: tuple[int, ...] = (256,)
    max_segments: int = 32
    max_answer: int = 16
    train_examples: int | None = None
    overlong: Literal["error", "drop_segments"] = "error"
    phases: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class ModelConfig:
    """`name` is a hub id, folder, GGUF file, or "scratch": a model of the dimensions below, trained in the reader
    stage. `vocab_size` None takes the tokenizer's. `remat` recomputes activations in the backward pass: less memory.
    """

    name: str = "scratch"
    dtype: Literal["float32", "bfloat16"] = "float32"
    train: Literal["frozen", "lora", "full"] = "frozen"
    lora_rank: int = 8
    remat: bool = False
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
class ScorerSection:
    """`layer`: how many of the frozen model's layers all scorers but "standalone" read through. `budget`: whether the
    scorer is told how much may be kept. `apart`: of "pooled" and "linear", whether each piece is read by itself, so
    that the states of a pool's examples are computed once. `groups`: of "linear", how many groups of the task have
    weights of their own beside those that all share (1: the scorer is not told the group); of word problems a group is
    how the answer is to be written, sentences or equations. `products`: of "linear", whether it sees products of a
    segment's state and the question's, to learn which likeness counts. `question`: false hides the question from the
    scorer. `positions`, `padding`: of "cot_influx" alone, what each segment is padded to, and whether padded positions
    count in the mean of a segment's logits.
    """

    kind: Literal["hidden", "mlp", "pooled", "linear", "standalone", "cot_influx", "llmlingua2"] = "hidden"
    layer: int = 1
    width: int = 128
    depth: int = 1
    heads: int = 4
    budget: bool = False
    apart: bool = False
    groups: int = 1
    products: bool = False
    question: bool = True
    positions: int = 512
    padding: bool = True


@dataclass(frozen=True)
class BudgetConfig:
    """How much of the context is kept. In training each example draws one of `keep_rates` (fractions of its context
    tokens) or of `keep_tokens` (numbers of them). Only one of the two may be set. Granularity "independent" has no
    budget in training (see `rcp.nn.independent`); these are then the budgets of evaluation alone. `cut`: which end of
    the segment that crosses the budget is dropped; a worked example without its beginning still ends with its answer.
    """

    granularity: Literal["token", "segment", "two_stage", "independent"] = "segment"
    keep_rates: tuple[float, ...] = (0.5,)
    keep_tokens: tuple[int, ...] | None = None
    cut: Literal["end", "beginning"] = "end"


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
class WarmStartConfig:
    """A stage before the pruner's that trains the scorer by `objectives` of its own, the model frozen. 0 steps: none.

    Keep-labels that the task knows cost no reading by the model, so that many such steps cost as much as a few others.
    """

    steps: int = 0
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyConfig:
    """The reinforcement objectives: masks drawn an example, baseline, clipped ratio.

    `normalise` divides advantages by their deviation within the example (GRPO). `updates`: optimizer steps taken on the
    same draws, rewards and labels, which cost the model's forward passes. `logged`: draw `samples` masks for each of
    `data.train_examples` once, by the scorer as the warm start leaves it, and judge them in a stage of their own; the
    pruner's stage learns from these, as many steps as one likes (`rcp.train.judge_step`).
    """

    samples: int = 4
    baseline: Literal["none", "self_critical", "moving_average", "leave_one_out"] = "leave_one_out"
    baseline_decay: float = 0.95
    normalise: bool = False
    clip: float = 0.2
    updates: int = 1
    logged: bool = False


@dataclass(frozen=True)
class RelaxConfig:
    """The differentiable mask of the objectives "nll", "kl" and "budget"; see `rcp.nn.relax.relax`.

    "sigmoid" is a soft budget: it holds on average, by the objective "budget" and its Lagrange multiplier. `noise`:
    draw Gumbel noise, else relax the deterministic mask.
    """

    method: Literal["straight_through", "threshold", "successive", "sigmoid"] = "straight_through"
    temperature: float = 1.0
    noise: bool = True


@dataclass(frozen=True)
class LabelConfig:
    """Where keep-labels, which the objective "bce" learns, come from; see `rcp.train.labels`.

    "support": the task's own. "leave_one_out": how much the answer loses without a segment. "alone": how much it gains
    from a segment alone. "tokens": leave-one-out of single tokens to first order, which costs one backward pass; their
    sums label the segments. All but the first become soft labels sigmoid(`sharpness` * (z - `above`)), z the gain
    standardised within the example; where gains do not differ, as of a single segment, there are no labels.
    """

    source: Literal["support", "leave_one_out", "alone", "tokens"] = "support"
    sharpness: float = 4.0
    above: float = 1.0


@dataclass(frozen=True)
class EndpointConfig:
    """Another vendor's model behind an OpenAI-compatible HTTP endpoint; see `rcp.endpoint.client`.

    `base_url` is such as "http://127.0.0.1:8000/v1"; `model` may be left out where the endpoint serves one. `api`:
    "completions" sends the plain prompt, "chat" sends it as a user's message. `api_key_env` names the environment
    variable that holds the key (none is sent where it is not set). `concurrency`: requests at a time; `timeout`:
    seconds a request; `retries`: how often a request that was refused for the moment is sent again. `max_new`: tokens
    of an answer at most. `logprobs`: also ask how likely the gold answer is, where the endpoint echoes prompts with
    log-probabilities.
    """

    base_url: str = ""
    model: str = ""
    api: Literal["completions", "chat"] = "completions"
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    max_new: int = 256
    logprobs: bool = False


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the parts of the reward: exact match, 1 / (1 + NLL), share of the context used.

    `kind`: "additive" subtracts the last; "cot_influx" multiplies the sum of the first two by t / `window`, or by its
    inverse where it is above 1, t being the context tokens kept.

    `reader` "openai" asks the model behind `endpoint` instead of our own for the exact match, and for the likelihood
    where `endpoint.logprobs` is set. Each step then waits for the answers.
    """

    kind: Literal["additive", "cot_influx"] = "additive"
    exact_match: float = 1.0
    likelihood: float = 1.0
    length: float = 0.0
    window: int = 2048
    reader: Literal["model", "openai"] = "model"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)


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
    """`keep`: how many checkpoints are kept. `prepare`: compute the keep-labels and what a "pooled" or "linear" scorer
    reads, once, for all of `data.train_examples`, in stages before the pruner's; the model must be frozen.
    """

    steps: int = 1000
    log_every: int = 10
    checkpoint_every: int = 200
    keep: int = 2
    prepare: bool = False


@dataclass(frozen=True)
class ParallelConfig:
    """`devices` 0 means all. `shard_params` (mesh only) splits large parameters over the devices.

    Several processes, each with the same command and one shared workdir: give `coordinator` ("host:port" of process 0),
    `num_processes` and each its `process_id`; or `distributed` alone on a cluster that jax.distributed recognises.
    """

    mode: Literal["pmap", "mesh"] = "pmap"
    devices: int = 0
    shard_params: bool = False
    coordinator: str | None = None
    num_processes: int = 1
    process_id: int = 0
    distributed: bool = False


@dataclass(frozen=True)
class EvalConfig:
    """What `rcp eval` compares, at `keep_rates` and at `keep_tokens` (those of `budget` where it has some and none are
    given), on `examples` examples of the split from number `first` on. `bootstrap`: resamples behind the 95 %
    intervals; `shown`: examples on the page.

    `decode`: 0 takes as exact match that every token of the gold answer is the greedy one; above 0, so many tokens are
    decoded greedily and the task judges the text. With `samples` above 1, so many answers are drawn at `temperature`
    from the likeliest tokens that reach `top_p`, and the answer that most of them give is judged (self-consistency).

    `reader` "openai": the model behind `endpoint` answers, from the pruned text, in at most `endpoint.max_new` tokens
    (`decode` is 0 or the same).

    `draw`: how a pruner of granularity "independent" decides. "budget": the best of its scores at each budget;
    "sample": a draw, seeded by `seed` (as CoT-Influx evaluates); "likely": what it keeps with probability above 1/2.
    The last two know no budget. `runs`: workdirs of other runs on the same reader that are compared too, by the names
    of their rows.
    """

    keep_rates: tuple[float, ...] = (1.0, 0.5, 0.25)
    keep_tokens: tuple[int, ...] = ()
    methods: tuple[str, ...] = DEFAULT_METHODS
    examples: int = 200
    first: int = 0
    batch_size: int = 16
    bootstrap: int = 1000
    shown: int = 8
    decode: int = 0
    samples: int = 1
    temperature: float = 0.7
    top_p: float = 1.0
    reader: Literal["model", "openai"] = "model"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    draw: Literal["budget", "sample", "likely"] = "budget"
    seed: int = 0
    split: Literal["train", "validation", "test"] = "test"
    runs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    seed: int = 0
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    reader: ReaderStageConfig = field(default_factory=ReaderStageConfig)
    scorer: ScorerSection = field(default_factory=ScorerSection)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    relax: RelaxConfig = field(default_factory=RelaxConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    eviction: EvictionConfig = field(default_factory=EvictionConfig)
