"""From a trained run to its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rcp.config import Config, EvalConfig
from rcp.data.text import Texts
from rcp.endpoint.client import Client
from rcp.evaluate import page, plots, tables
from rcp.evaluate.answers import by_decoding, decoding_of
from rcp.evaluate.budgets import forced_over, make_budgets
from rcp.evaluate.cells import Cell, open_cell
from rcp.evaluate.lengths import longest
from rcp.evaluate.outside import Outside
from rcp.evaluate.reading import Reader
from rcp.evaluate.results import Results
from rcp.evaluate.subject import Subject, learned, of_run
from rcp.evaluate.sweep import sweep
from rcp.infer.trained import check_groups, load_trained
from rcp.nn.pruner import Granularity, exact
from rcp.policies import (
    POLICIES,
    Alone,
    Bm25,
    Contrast,
    Embedding,
    Greedy,
    Learned,
    LLMLingua,
    Mmr,
    Perplexity,
    Policy,
    Selective,
)
from rcp.types import Batch, Example, Role, UserError

FILES = (
    "report.json",
    "report.csv",
    "report.md",
    "report.png",
    "groups.json",
    "groups.csv",
    "paired.json",
    "paired.csv",
    "kept.html",
    "results.npz",
)
GREEDY = 4
"""How many segments the method "greedy" searches for: it reads as many times the number of segments an example."""


def make_policies(
    methods: Sequence[str],
    batches: Sequence[Batch],
    *,
    model: Any,
    decode: Callable[[Sequence[int]], str],
    ours: Learned | None,
    granularity: Granularity,
) -> list[Policy]:
    """The policies named, in that order. Left out with a word on the terminal: the oracle where no example has support.

    `granularity`: what policies without one of their own are to decide.

    Raises:
      UserError: an unknown method, or "ours" where there is none.
    """
    if unknown := [method for method in methods if method not in POLICIES]:
        raise UserError(f"config.eval.methods: no method {unknown[0]!r}; expected some of {', '.join(POLICIES)}")
    if "ours" in methods and ours is None:
        raise UserError("config.eval.methods: 'ours' needs a trained run")
    if "oracle" in methods and not any((batch.support == 1).any() for batch in batches):
        print("oracle: left out, the task does not know which segments are needed")
        methods = [method for method in methods if method != "oracle"]

    def answer() -> int:
        return max(int(np.max(np.sum(batch.role == Role.ANSWER, axis=1))) for batch in batches)

    def with_segments(count: int) -> int:
        return longest(batches, (Role.INSTRUCTION, Role.QUESTION, Role.ANSWER), count)

    steps = range(1, GREEDY + 1)
    trained = {"ours": lambda: ours} if ours is not None else {}
    made: dict[str, Callable[[], Policy]] = {
        **POLICIES,
        "perplexity": lambda: Perplexity.of(model),
        "bm25": lambda: Bm25(decode),
        "embedding": lambda: Embedding.of(model),
        "mmr": lambda: Mmr.of(model),
        "contrast": lambda: Contrast.of(
            model, length=longest(batches, (Role.QUESTION,), 1), whole=granularity == "segment"
        ),
        "llmlingua": lambda: LLMLingua.of(model, length=longest(batches, (), 1)),
        "selective": lambda: Selective.of(model, decode=decode),
        "alone": lambda: Alone.of(model, length=with_segments(1), max_answer=answer()),
        "greedy": lambda: Greedy.of(model, lengths=tuple(map(with_segments, steps)), max_answer=answer()),
        **trained,
    }
    return [made[method]() for method in methods]


def other_runs(config: Config, groups: Sequence[str]) -> list[Policy]:
    """The pruners of `eval.runs`, each under its name and at the granularity it was trained at.

    `groups`: of the prompts that they are evaluated on.

    Raises:
      UserError: as in `load_trained`; a run on another reader, or one that has no weights for these groups.
    """

    def reader(config: Config) -> str:
        """Whose tokens the batches hold: those of a published model, or of the task."""
        return config.model.name if config.model.name != "scratch" else f"scratch, task {config.task.name}"

    policies = []
    for name, workdir in config.eval.runs.items():
        trained = load_trained(workdir)
        if (its := reader(trained.config)) != reader(config):
            raise UserError(f"config.eval.runs.{name}: the reader of {workdir} is {its}: expected {reader(config)}")
        check_groups(trained.config, groups, workdir, f"config.eval.runs.{name}: the task {config.task.name}")
        policies.append(learned(trained, name=name, granularity=exact(trained.config.budget.granularity)))
    return policies


def write_report(
    folder: Path, results: Results, decode: Callable[[Sequence[int]], str], *, resamples: int, seed: int
) -> list[tables.Row]:
    """Writes `FILES` into the folder, prints the tables, and returns the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = tables.rows(results, resamples=resamples, seed=seed)
    paired = tables.differences(results, resamples=resamples, seed=seed)
    tables.write_results(folder / "results.npz", results)
    tables.write_table(folder / "report", tables.overall(rows))
    tables.write_table(folder / "groups", [asdict(row) for row in rows])
    tables.write_table(folder / "paired", [asdict(difference) for difference in paired])
    (folder / "report.md").write_text(tables.markdown(rows, decoded=results.how or results.decoded), encoding="utf-8")
    plots.write(folder / "report.png", rows)
    page.write(folder / "kept.html", results, decode)
    tables.print_console(rows, decoded=results.how or results.decoded)
    return rows


def policies_of(subject: Subject, batches: Sequence[Batch]) -> list[Policy]:
    """The methods that the subject's config names; see `make_policies`."""
    return make_policies(
        subject.config.eval.methods,
        batches,
        model=subject.model_of(subject.weights),
        decode=subject.tokenizer.decode,
        ours=subject.ours,
        granularity=exact(subject.config.budget.granularity),
    )


def measure(
    subject: Subject,
    batches: Sequence[Batch],
    examples: Mapping[int, Example],
    policies: Sequence[Policy],
    cell_of: Callable[[Policy], Cell],
    *,
    host: Outside | None = None,
    watch: Callable[[str, int, int], None] = lambda method, done, batches: None,
) -> Results:
    """Compares the policies on the subject's examples, as its config says; `cell_of` and `watch` as in `sweep`.

    `examples`: by their number.

    `host`: a reader that takes the place of the subject's own.
    """
    config = subject.config
    if config.eval.reader == "openai" and host is None:
        raise UserError('config.eval.reader is "openai": here the model itself reads; rcp eval asks an endpoint')
    keep_tokens = config.eval.keep_tokens or config.budget.keep_tokens or ()
    print(
        f"{len(examples)} examples of the {config.eval.split} split, prompts padded to "
        f"{batches[0].tokens.shape[1]} tokens"
    )
    judge, decoding = None, decoding_of(config, subject.task)
    if config.eval.decode and host is None:
        judge = by_decoding(subject.model_of, subject.tokenizer, subject.task.check, examples, decoding)
    if said := forced_over(batches, make_budgets(batches, config.eval.keep_rates, keep_tokens)):
        print(said)
    results = sweep(
        batches,
        policies,
        Reader(subject.read, subject.weights, judge, host),
        keep_rates=config.eval.keep_rates,
        keep_tokens=keep_tokens,
        granularity=exact(config.budget.granularity),
        cut=config.budget.cut,
        seed=config.seed,
        groups=subject.task.groups or ("",),
        shown=config.eval.shown,
        progress=print,
        cell_of=cell_of,
        watch=watch,
    )
    return replace(results, how=str(decoding)) if results.decoded else results


def _write_sent(path: Path, results: Results) -> None:
    """What was asked for and sent as text, one object a setting."""
    found = [
        {"method": setting[0], "keep_rate_asked": results.asked(setting), **sent.summary()}
        for setting, sent in zip(results.settings, results.sent)
        if sent is not None
    ]
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _check_reader(chosen: EvalConfig, overrides: Sequence[str]) -> None:
    """Refuses flags that the chosen reader would not look at."""
    if chosen.reader == "openai":
        most = chosen.endpoint.max_new
        if chosen.decode not in (0, most):
            raise UserError(
                f"config.eval.decode = {chosen.decode}: expected 0 or config.eval.endpoint.max_new ({most}), which is "
                'how many tokens an endpoint is asked for, where eval.reader is "openai"'
            )
        return
    for flag in overrides:
        if flag.startswith("--config.eval.endpoint"):
            key = flag.partition("=")[0].removeprefix("--")
            raise UserError(f"{key} is given, but this run's own model is the reader: add --reader=openai")


def evaluate(workdir: str | Path, overrides: Sequence[str] = ()) -> list[tables.Row]:
    """Compares the pruner of a run with the other methods on held-out examples and writes the report to `workdir/eval`.

    What each method found is kept in `workdir/eval/cells` as it is found, and not computed again. With a reader behind
    an endpoint the folder is `workdir/eval_endpoint`, which also holds all its answers.

    Args:
      workdir: of a training run. overrides: flags such as "--config.eval.examples=50".

    Raises:
      UserError: nothing trained there, a keep rate outside (0, 1], an unknown method, no examples; a run of `eval.runs`
        that cannot be compared; flags that the reader would not look at.
    """
    trained = load_trained(workdir, overrides)
    _check_reader(trained.config.eval, overrides)
    subject = of_run(trained)
    config, host, folder = subject.config, None, Path(workdir) / "eval"
    batches, examples = subject.examples()
    if config.eval.reader == "openai":
        folder = Path(workdir) / "eval_endpoint"
        client = Client(config.eval.endpoint, folder / "requests.jsonl")
        texts, decoding = Texts(subject.encoded(), subject.tokenizer), decoding_of(config, subject.task)
        host = Outside(client, texts, subject.task.check, decoding)

    def cell_of(policy: Policy) -> Cell:
        served = {}
        if host is not None:
            served = {"endpoint.model": host.client.model, "endpoint.likelihood": host.scored}
        return open_cell(folder / "cells" / f"{policy.name}.npz", subject.identity(policy) | served)

    policies = [*policies_of(subject, batches), *other_runs(config, subject.task.groups)]
    results = measure(subject, batches, examples, policies, cell_of, host=host)
    rows = write_report(folder, results, subject.tokenizer.decode, resamples=config.eval.bootstrap, seed=config.seed)
    if host is not None:
        _write_sent(folder / "sent.json", results)
        print(f"the report is in {folder} ({host.client.sent} requests sent)")
        return rows
    times = "once for all settings" if results.compiles else "not at all: every number was there"
    print(f"the report is in {folder} (the reader was compiled {times})")
    return rows
