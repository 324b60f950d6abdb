"""The command line, `rcp COMMAND ...`: reads arguments and calls what does the work. Imports are in the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcp.cost import command as cost
from rcp.types import UserError


@dataclass(frozen=True)
class Command:
    """A subcommand. `run` gets the parsed arguments and the `--config.*` flags; it returns the exit status."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], int]
    takes_config: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Exit status: 0 done, 2 an input to mend (said on stderr), 130 or 143 stopped by a signal."""
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="rcp", description="Reinforced context pruning.", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        epilog = "A key of the config is set by --config.section.key=value." if command.takes_config else None
        sub = subparsers.add_parser(
            name, help=command.help, description=command.help, epilog=epilog, allow_abbrev=False
        )
        command.arguments(sub)
    arguments = parser.parse_args(rest)
    command = COMMANDS[arguments.command]
    if overrides and not command.takes_config:
        parser.error(f"rcp {arguments.command} takes no config: {overrides[0]}")
    try:
        return command.run(arguments, overrides)
    except UserError as error:
        print(f"rcp {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags `--config.a.b=v` (or `--config.a.b v`, made one) apart from the other arguments."""
    rest, overrides = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
        elif "=" in word:
            overrides.append(word)
        else:
            overrides.append(f"{word}={next(words, '')}")
    return rest, overrides


# ---------------------------------------------------------------------------------------------- rcp train


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="configs/X.py or configs/X.py:variant; may be left out to go on in a workdir")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="checkpoints and metrics; a run there is gone on with"
    )
    parser.add_argument(
        "--prepared",
        type=Path,
        metavar="RUN",
        help="take over what another run of the same task, examples and model has computed once, as far as it fits: "
        "keep-labels of the same labels.source, states of the same layer; of learned eviction, what the stage `traces` "
        "has trained, from a run that differs only in how it learns through answers",
    )


def _train(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from rcp.config_file import load_config
    from rcp.config_saved import check_workdir

    check_workdir(arguments.workdir)
    saved = arguments.workdir / "config.json"
    if not arguments.config and not saved.exists():
        raise UserError(f"{arguments.workdir} holds no run to go on with: give --config=configs/X.py")
    config = load_config(arguments.config or saved, overrides)

    from rcp.train.parallel import use_compile_cache

    use_compile_cache()
    from rcp.train.build import stages_of
    from rcp.train.loop import run

    result = run(stages_of(config), config, arguments.workdir, arguments.prepared)
    if not result.finished:
        print(f"stopped after step {result.step} of stage {result.stage}; the same command goes on from there")
        return 128 + (result.signal or 0)
    judged = not (config.eviction.tasks or config.dynamic.on)  # by rcp eval
    print(f"trained: {arguments.workdir}." + (f" Next: rcp eval --workdir={arguments.workdir}" if judged else ""))
    return 0


# ---------------------------------------------------------------------------------------------- rcp eval


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run; the report goes to its eval/")
    for name, text, choices in ENDPOINT_FLAGS:
        parser.add_argument(f"--{name}", help=text, choices=choices)
    parser.add_argument(
        "--logprobs", action="store_true", default=None, help="ask the endpoint for the gold answers' likelihood too"
    )


ENDPOINT_FLAGS = (
    ("reader", "openai: the pruned text is answered by another model, behind --base_url", ("model", "openai")),
    ("base_url", "of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1", None),
    ("reader_model", "its model (may be left out where it serves one)", None),
    ("api", "completions sends the plain prompt (default), chat sends it as a message", ("completions", "chat")),
    ("api_key_env", "the environment variable that holds the key (default OPENAI_API_KEY)", None),
    ("concurrency", "requests at a time (default 8)", None),
)
"""Short forms of config.eval.reader and the keys of config.eval.endpoint: name, help, choices."""


def endpoint_overrides(arguments: argparse.Namespace) -> list[str]:
    """The config flags that the short forms stand for."""
    out = []
    for name in (*(name for name, *_ in ENDPOINT_FLAGS), "logprobs"):
        value = getattr(arguments, name)
        if value is not None:
            key = {"reader": "reader", "reader_model": "endpoint.model"}.get(name, f"endpoint.{name}")
            out.append(f"--config.eval.{key}={value if name in ('concurrency', 'logprobs') else repr(value)}")
    return out


def _eval(arguments: argparse.Namespace, overrides: list[str]) -> int:
    overrides = [*endpoint_overrides(arguments), *overrides]
    from rcp.train.parallel import use_compile_cache

    use_compile_cache()
    from rcp.evaluate.run import evaluate

    evaluate(arguments.workdir, overrides)
    return 0


# ---------------------------------------------------------------------------------------------- rcp prune


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="prompt files, pruned in one batch; - is stdin")
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run")
    parser.add_argument("--question", required=True, help="what the context is to answer; read, not printed")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--keep-rate", type=float, help="fraction of the context's tokens to keep, in (0, 1]")
    budget.add_argument("--keep-tokens", type=int, help="tokens of the context to keep")
    parser.add_argument("--force", action="append", default=[], metavar="REGEX", help="always keep what this matches")
    group = "what kind of problem it is, for a pruner that tells kinds apart, such as sentences or equations"
    parser.add_argument("--group", default="", help=f"{group} (default: the first of them)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file, counts included")


def _prune(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from rcp.train.parallel import use_compile_cache

    use_compile_cache()
    from rcp.infer.files import prune_files

    prune_files(
        arguments.workdir,
        arguments.files,
        arguments.question,
        keep_rate=arguments.keep_rate,
        keep_tokens=arguments.keep_tokens,
        force=arguments.force,
        group=arguments.group,
        as_json=arguments.json,
    )
    return 0


# ---------------------------------------------------------------------------------------------- rcp export


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run")
    parser.add_argument("--output", type=Path, required=True, help="folder to be made; used like a --workdir")


def _export(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from rcp.config_file import load_config
    from rcp.infer.saved_run import config_of_run, say_if_interrupted

    config = load_config(config_of_run(arguments.workdir, "configs/X.py"))
    from rcp.train.build import stages_of
    from rcp.train.loop import export

    stages = stages_of(config)
    step = export(stages, config, arguments.workdir, arguments.output)
    say_if_interrupted(arguments.workdir, stages[-1], step)
    size = sum(path.stat().st_size for path in arguments.output.iterdir())
    print(f"exported: {arguments.output}, {size / 1e6:.1f} MB")
    return 0


# ---------------------------------------------------------------------------------------------- rcp tables


def _tables_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the table; without it they are listed")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of the table: rcp tables NAME --help")


def _tables(arguments: argparse.Namespace, overrides: list[str]) -> int:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "experiments" / "tables.py").is_file():
        raise UserError("the tables are in experiments/, which only a checkout has: git clone, pip install -e .")
    sys.path.insert(0, str(checkout))
    from experiments.tables import main as run_table

    return run_table(arguments.name, arguments.flags)


# ---------------------------------------------------------------------------------------------- rcp doctor


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _doctor(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from rcp.doctor import report

    print(report())
    return 0


COMMANDS: dict[str, Command] = {
    "train": Command("Train a pruner, or go on training it.", _train_arguments, _train, takes_config=True),
    "eval": Command("Compare a trained pruner with other methods.", _eval_arguments, _eval, takes_config=True),
    "tables": Command("Measure a table of experiments/, or go on, and write it.", _tables_arguments, _tables),
    "export": Command("Copy what a run has trained, without its optimizer's state.", _export_arguments, _export),
    "prune": Command("Prune prompt files; their segments are separated by blank lines.", _prune_arguments, _prune),
    "cost": Command("What a model costs, pruned and not.", cost.add_arguments, cost.run, takes_config=True),
    "doctor": Command("Print versions, devices, and where data and weights are found.", _doctor_arguments, _doctor),
}
"""Every command by its name. To add one: its arguments, its function (imports inside), a line here."""
