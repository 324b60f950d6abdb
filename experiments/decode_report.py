"""Tables and picture of `bench_decode`: medians, ratios, and the distance of each number from its floor."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.machine import Machine, decoding, reading
from rcp.nn.parameters import TransformerConfig

Cell = Mapping[str, Any]
FLOOR = "seconds over the floor's"
OWN_FORMAT = ("llama.cpp",)
"""Sides that read and multiply in their file's number format: a floor of the cell's dtype is none of theirs."""


def of(cell: Cell, side: str, part: str) -> float | None:
    """Median seconds, or None where that side did not do it."""
    values = cell["seconds"].get(side, {}).get(part)
    return statistics.median(values) if values else None


def ratio(cell: Cell, over: tuple[str, str], under: tuple[str, str]) -> float | None:
    """Median of the ratios within a repeat."""
    pairs = [cell["seconds"].get(side, {}).get(part) for side, part in (over, under)]
    if not pairs[0] or not pairs[1]:
        return None
    return statistics.median(a / b for a, b in zip(*pairs, strict=True))


def shown(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def over_floor(name: str, seconds: float | None, floor: float) -> str:
    return "-" if seconds is None or name in OWN_FORMAT else shown(seconds / floor)


def rates_of(cell: Cell) -> list[float]:
    """Keep rates, 1 first."""
    return sorted((float(p.split()[1]) for p in cell["seconds"]["ours"] if p.startswith("decode ")), reverse=True)


def prefill_rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    shape = TransformerConfig(**report["shape"])
    yield ["dtype", "tokens", "batch", "ours, tokens/s", FLOOR, "in chunks, for the policy: seconds over these"]
    for name in report["others"]:
        yield [f"{name}, tokens/s", FLOOR, "its seconds over ours"]
    for cell in report["cells"]:
        count = cell["tokens"] * cell["batch"]
        floor = Machine(**cell["machine"]).floor(reading(shape, cell["tokens"], cell["batch"]), 0, cell["dtype"])
        mine = of(cell, "ours", "prefill") or 0
        row = [cell["dtype"], str(cell["tokens"]), str(cell["batch"]), f"{count / mine:.0f}", shown(mine / floor)]
        row.append(shown(ratio(cell, ("ours", "read"), ("ours", "prefill"))))
        for name in report["others"]:
            theirs = of(cell, name, "prefill")
            row += ["-" if theirs is None else f"{count / theirs:.0f}", over_floor(name, theirs, floor)]
            row.append(shown(ratio(cell, (name, "prefill"), ("ours", "prefill"))))
        yield row


def decode_rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    shape, new = TransformerConfig(**report["shape"]), report["new"]
    yield ["dtype", "tokens", "batch", "kept", "read, s", "prune, s", "decode, tokens/s", FLOOR]
    yield ["speed over the whole cache's", "over that of a context as long as what is kept"]
    yield [f"read, prune, {new} tokens: seconds over the whole cache's"]
    for name in report["others"]:
        yield [f"{name}, whole cache: tokens/s", FLOOR, "its seconds over ours"]
    for cell in report["cells"]:
        machine = Machine(**cell["machine"])
        for rate in rates_of(cell):
            full, tokens, batch = rate == 1, int(rate * cell["tokens"]), cell["batch"]
            mine = of(cell, "ours", f"decode {rate:g}") or 0
            floor = new * machine.floor(*decoding(shape, tokens, batch, cell["dtype"]), cell["dtype"])
            read, pruned = (
                of(cell, "ours", "prefill" if full else "read") or 0,
                of(cell, "ours", f"prune {rate:g}") or 0,
            )
            whole = (of(cell, "ours", "prefill") or 0) + (of(cell, "ours", "decode 1") or 0)
            row = [cell["dtype"], str(cell["tokens"]), str(batch), f"{rate:g}", shown(read), shown(pruned)]
            row += [f"{batch * new / mine:.1f}", shown(mine / floor)]
            row.append(shown(ratio(cell, ("ours", "decode 1"), ("ours", f"decode {rate:g}"))))
            row.append(shown(ratio(cell, ("ours", f"fresh {rate:g}"), ("ours", f"decode {rate:g}"))))
            row.append(shown((read + pruned + mine) / whole))
            for name in report["others"]:
                theirs = of(cell, name, "decode") if full else None
                row += ["-" if theirs is None else f"{batch * new / theirs:.1f}", over_floor(name, theirs, floor)]
                row.append(shown(ratio(cell, (name, "decode"), ("ours", f"decode {rate:g}"))))
            yield row


def eight_bit_rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    """The whole cache, decoded with weights in 8 bits. The floor's products are those of the dtype."""
    shape, new = TransformerConfig(**report["shape"]), report["new"]
    yield [
        "dtype of the rest",
        "tokens",
        "batch",
        "decode, tokens/s",
        FLOOR,
        "speed over that of the weights as they are",
    ]
    yield [f"{name}: its seconds over these" for name in report["others"]]
    for cell in report["cells"]:
        mine = of(cell, "ours", "int8 weights")
        if mine is None:
            continue
        work = decoding(shape, cell["tokens"], cell["batch"], cell["dtype"], int8_weights=True)
        floor = new * Machine(**cell["machine"]).floor(*work, cell["dtype"])
        row = [cell["dtype"], str(cell["tokens"]), str(cell["batch"]), f"{cell['batch'] * new / mine:.1f}"]
        row += [shown(mine / floor), shown(ratio(cell, ("ours", "decode 1"), ("ours", "int8 weights")))]
        yield row + [shown(ratio(cell, (name, "decode"), ("ours", "int8 weights"))) for name in report["others"]]


def table(rows: Iterator[list[str]], columns: int) -> str:
    """Markdown; the first `columns` rows together are the head."""
    head = [name for _ in range(columns) for name in next(rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def markdown(report: Mapping[str, Any]) -> str:
    others = len(report["others"])
    repeats = [len(cell["seconds"]["ours"]["prefill"]) for cell in report["cells"]]
    machines = [cell["machine"] for cell in report["cells"]]
    said = [f"jax {report['jax']}"]
    said += [f"{name} ({', '.join(f'{k} {v}' for k, v in at.items())})" for name, at in report["others"].items()]
    same = [
        f"{cell['dtype']} {cell['tokens']} x {cell['batch']}: "
        + ", ".join(f"{name} {share:.2f}" for name, share in cell["same tokens"].items())
        for cell in report["cells"]
        if cell["same tokens"]
    ]
    bandwidth = statistics.median(m["bandwidth"] for m in machines) / 1e9
    peaks = {name: statistics.median(m["peak"][name] for m in machines) / 1e9 for name in machines[0]["peak"]}
    own = [name for name in report["others"] if name in OWN_FORMAT]
    lines = [
        f"{'; '.join(said)}. Policy {report['policy']}, {report['new']} tokens decoded, medians of {min(repeats)} to "
        f"{max(repeats)} repeats.",
        f"Measured in the same run: {bandwidth:.1f} GB/s read; "
        + ", ".join(f"{name} products {peak:.0f} GFLOP/s" for name, peak in peaks.items())
        + "."
        + "".join(f" {name} reads its file's own number format, which has no floor here." for name in own),
        "\n## Reading\n\n" + table(prefill_rows(report), 1 + others),
        "\n## Decoding\n\n" + table(decode_rows(report), 3 + others),
    ]
    if any("int8 weights" in cell["seconds"]["ours"] for cell in report["cells"]):
        lines.append("\n## Decoding with weights in 8 bits\n\n" + table(eight_bit_rows(report), 2))
    if same:
        lines.append("\nShare of rows in which the decoded tokens are the same as ours: " + "; ".join(same) + ".")
    return "\n".join(lines) + "\n"


WHOLE = (
    ("ours", "int8 weights", "-.", "ours, whole, 8-bit weights"),
    ("transformers", "decode", "--", "transformers, whole"),
    ("llama.cpp", "decode", ":", "llama.cpp, whole, 4-bit weights"),
)
"""What is drawn as a line across the panel: side, part, style, label."""


def figure(path: Path, report: Mapping[str, Any]) -> None:
    """Decoded tokens a second over the share kept, a panel a context and batch; lines across are of the whole cache."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = [cell for cell in report["cells"] if rates_of(cell)]
    panels = sorted({(cell["tokens"], cell["batch"]) for cell in cells})
    if not panels:
        return
    shares = sorted({rate for cell in cells for rate in rates_of(cell)})
    fig = Figure(figsize=(max(5.6, 4.2 * len(panels)), 4.2), layout="constrained")
    for axis, panel in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels):
        for cell in cells:
            if (cell["tokens"], cell["batch"]) != panel:
                continue
            count, rates = cell["batch"] * report["new"], rates_of(cell)
            colour = {"float32": "C0", "bfloat16": "C1"}.get(cell["dtype"], "C2")
            speeds = [count / (of(cell, "ours", f"decode {rate:g}") or 1) for rate in rates]
            axis.plot(rates, speeds, marker="o", color=colour, label=f"ours, {cell['dtype']}")
            for side, part, style, label in WHOLE:
                seconds = of(cell, side, part)
                if not seconds:
                    continue
                line = axis.axhline(count / seconds, color=colour, linestyle=style, label=f"{label}, {cell['dtype']}")
                if side in OWN_FORMAT:  # the same whatever the dtype
                    line.set(color="0.4", label=label)
        axis.set_title(f"{panel[0]} tokens, batch {panel[1]}", fontsize=10, loc="left")
        axis.set_xlabel("share of the cache kept")
        axis.set_xscale("log", base=2)
        axis.set_xlim(0.9 * shares[0], 1.1)
        axis.set_xticks(shares, labels=[f"{share:.4g}" for share in shares])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    fig.axes[0].set_ylabel("decoded tokens/s")
    legend = {label: line for axis in fig.axes for line, label in zip(*axis.get_legend_handles_labels())}
    columns = min(4, 2 * len(panels))
    fig.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    FigureCanvasAgg(fig)
    fig.savefig(path, dpi=140)
