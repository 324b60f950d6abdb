"""`rcp cost`: its arguments, and from them to numbers printed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from rcp.types import UserError

if TYPE_CHECKING:  # the command line must not import jax before a command that needs it
    from rcp.config import Config, ModelConfig
    from rcp.cost.device import Device
    from rcp.nn.parameters import TransformerConfig

COUNTS = {
    "batch": (1, "prompts at a time"),
    "context": (1024, "tokens of a prompt's context"),
    "fixed": (64, "tokens of instruction and question, always read"),
    "new": (64, "tokens of the answer"),
    "segments": (16, "segments of the context"),
}
OWN = {
    "memory_gb": "memory of a device of your own, 1e9 bytes",
    "bandwidth_gbs": "bandwidth of that memory, 1e9 bytes a second",
    "tflops": "peak of that device in the dtype asked about, 1e12 FLOPs a second",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `rcp cost`."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="name, folder, GGUF file or hub id; no weight is read"
    )
    parser.add_argument("--config", help="configs/X.py: takes model, dtype, scorer and training from it")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="short for --config.model.dtype")
    for name, (default, text) in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default:,})")
    parser.add_argument(
        "--keep-rate", type=float, nargs="+", default=[0.25], metavar="RATE", help="shares of the context kept (0.25)"
    )
    parser.add_argument("--device", nargs="+", metavar="NAME", help="only these of the known devices (default: all)")
    parser.add_argument("--longest", type=int, help="longest prompt that a break-even is looked for at (the model's)")
    parser.add_argument("--int8-weights", action="store_true", help="tokens are decoded by weights in 8 bits")
    for name, text in OWN.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="NUMBER", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object, in bytes, FLOPs and seconds")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the cost. Raises UserError on what cannot be."""
    from rcp.config_file import load_config
    from rcp.cost.estimate import Request, estimate
    from rcp.cost.report import NOTES, grids
    from rcp.cost.scoring import check_scorer

    for name in COUNTS:
        if getattr(arguments, name) < (0 if name == "new" else 1):
            raise UserError(f"--{name} is {getattr(arguments, name)}: expected a number above 0")
    if wrong := [rate for rate in arguments.keep_rate if not 0 < rate <= 1]:
        raise UserError(f"--keep-rate is {wrong[0]}: expected shares of the context in (0, 1]")
    flags = [f"--config.model.dtype={arguments.dtype}"] if arguments.dtype else []
    config = load_config(arguments.config, [*flags, *overrides])
    shape = shape_of(arguments.model, config)
    check_scorer(shape, config.scorer)
    counts = {name: getattr(arguments, name) for name in COUNTS}
    counts["longest"] = shape.max_positions if arguments.longest is None else arguments.longest
    if counts["longest"] <= arguments.fixed:
        raise UserError(f"--longest is {counts['longest']}: expected more than --fixed, {arguments.fixed}")
    request = Request(shape, config, keep_rates=arguments.keep_rate, int8_weights=arguments.int8_weights, **counts)
    found = estimate(request, _devices(arguments, config))
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    from rcp.evaluate.tables import print_grids

    print_grids(grids(found), ours="")
    print("\n".join(NOTES))
    return 0


def shape_of(model: str | None, config: Config) -> TransformerConfig:
    """The architecture of a named model, else of the configuration's.

    Raises:
      UserError: as `rcp.pretrained.read_shape`; a model from scratch whose vocabulary the configuration leaves to its
        task.
    """
    from rcp.pretrained import read_shape

    name = model or config.model.name
    return scratch_shape(config.model) if name == "scratch" else read_shape(name)


def scratch_shape(model: ModelConfig) -> TransformerConfig:
    """Of a model that is trained from scratch."""
    from rcp.nn.parameters import TransformerConfig

    if model.vocab_size is None:
        raise UserError(
            "config.model.vocab_size is not set, and the task's tokenizer that decides it is not loaded here: give "
            "--config.model.vocab_size=N, or a MODEL"
        )
    both = {field.name for field in fields(TransformerConfig)} & {field.name for field in fields(model)}
    try:
        return TransformerConfig(**{name: getattr(model, name) for name in both})
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None


def _devices(arguments: argparse.Namespace, config: Config) -> list[Device]:
    from rcp.cost.device import DEVICES, device_named, own_device

    own = [getattr(arguments, name) for name in OWN]
    named = [device_named(name) for name in arguments.device or ()]
    if all(value is None for value in own):
        return named or list(DEVICES.values())
    if any(value is None for value in own):
        raise UserError("a device of your own needs all of --memory-gb, --bandwidth-gbs and --tflops")
    return [*named, own_device(own[0], own[1], own[2], config.model.dtype)]
