"""The numbers of `rcp cost` as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rcp.evaluate.tables import Grid

NOTES = (
    "Lower bounds: FLOPs over the device's peak or bytes over its bandwidth, whichever takes longer (docs/cost.md).",
    "break-even: prompt length in tokens from which on scoring and reading what is kept costs less than reading all.",
)


def grids(found: dict[str, Any]) -> list[Grid]:
    """All tables of an estimate."""
    return [_memory(found), _work(found), _training(found), *_devices(found)]


def size(value: float) -> str:
    """Bytes with three figures: 1.23 GB is 1.23e9."""
    return scaled(value, "B")


def operations(value: float) -> str:
    return scaled(value, "FLOP")


def scaled(value: float, unit: str) -> str:
    """Three figures and a decimal prefix."""
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{_figures(value / factor)} {prefix}{unit}"
    return f"{_figures(value)} {unit}"


def seconds(value: float | None) -> str:
    """Milliseconds with three figures; "?" where it is not known, nothing where there is nothing to do."""
    if value is None:
        return "?"
    return f"{_figures(1e3 * value)} ms" if value else ""


def _figures(value: float) -> str:
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _memory(found: dict[str, Any]) -> Grid:
    held, prompt = found["memory"], found["prompt"]
    lines = [("tokens read", *(f"{parts['tokens_read']:,}" for parts in held.values()))]
    for name, label in (
        ("weights", "weights"),
        ("cache", f"KV cache, with {prompt['new']} new tokens"),
        ("reading", "beside them while reading"),
        ("scoring", "beside the weights while scoring"),
        ("decoding", "beside weights and cache while decoding"),
        ("total", "at the fullest moment"),
    ):
        lines.append((label, *(size(parts[name]) if parts[name] else "" for parts in held.values())))
    rounded = ", decoded by weights in 8 bits" if found["int8_weights"] else ""
    title = f"Memory: {found['model']['parameters']:,} parameters, {found['dtype']}{rounded}, "
    title += f"{found['batch']} prompts of {prompt['context'] + prompt['fixed']:,} tokens"
    return Grid(title, ("", *held), tuple(lines))


def _work(found: dict[str, Any]) -> Grid:
    work, new = found["work"], found["prompt"]["new"]
    lines = []
    for name, label in (
        ("score", f"score the prompt ({found['scorer']['kind']})"),
        ("read", "read it"),
        ("token", "a token of the answer"),
        ("total", f"all, {new} tokens"),
    ):
        cells = (parts[name] for parts in work.values())
        lines.append((label, *(f"{operations(w['flops'])}, {size(w['bytes'])}" if w["flops"] else "" for w in cells)))
    even = found["break_even_flops"]
    lines.append(("break-even by FLOPs", *(_length(even[name]) if name in even else "" for name in work)))
    return Grid("Work of a batch: operations, bytes moved", ("", *work), tuple(lines))


def _length(value: int | None) -> str:
    return "never" if value is None else f"{value:,}"


def _training(found: dict[str, Any]) -> Grid:
    trained = found["training"]
    model, pruner = trained["model"], trained["pruner"]
    lines = [
        (name, size(model[name]), size(pruner[name]) if name in pruner else "")
        for name in ("weights", "gradients", "optimizer", "activations", "total")
    ]
    lines.append(("operations", operations(model["flops"]), operations(pruner["flops"])))
    lines.append(("bytes moved", size(model["bytes"]), size(pruner["bytes"])))
    title = f"A training step: {trained['batch']} prompts of {trained['tokens']:,} tokens"
    return Grid(title, ("", "the model", f"the pruner, {pruner['draws']} draws"), tuple(lines))


def _devices(found: dict[str, Any]) -> list[Grid]:
    fits, times = [], []
    for device in found["devices"]:
        marks = ("yes" if fit else "no" for fit in device["fits"].values())
        fits.append((device["name"], size(device["memory"]), *marks))
        taken = device["seconds"]
        for name in found["memory"]:
            parts = (seconds(taken[name][part]) for part in ("score", "read", "token", "total"))
            even = device["break_even"]
            times.append((device["name"], name, *parts, _length(even[name]) if name in even else ""))
        times.append((device["name"], "training step", "", "", "", seconds(taken["train_step"]), ""))
    header = ("", "", "score", "read", "a token", "all", "break-even")
    return [
        Grid("Fits on one device", ("", "memory", *found["memory"], "training the model"), tuple(fits)),
        Grid("Time at least", header, tuple(times)),
    ]
