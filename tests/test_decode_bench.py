"""The report of `bench_decode`: from made-up seconds to ratios, and what of an earlier report stays."""

from __future__ import annotations

import json

import pytest

from experiments import bench_decode
from experiments.decode_report import markdown, ratio
from experiments.machine import Machine, decoding, reading
from rcp.eviction import POLICIES
from rcp.nn.parameters import TransformerConfig
from rcp.types import UserError

SHAPE = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 48}
MACHINE = {"bandwidth": 1e6, "peak": {"float32": 1e9, "bfloat16": 1e9}}


def report_of(**other) -> dict:
    ours = {"prefill": [2.0, 4.0], "decode 1": [4.0, 8.0], "read": [3.0, 5.0], "prune 0.25": [0.5, 0.5]}
    ours |= {"decode 0.25": [1.0, 2.0], "fresh 0.25": [0.9, 1.9]}
    theirs = {"prefill": [3.0, 6.0], "decode": [8.0, 16.0]}
    cell = {"dtype": "float32", "tokens": 100, "batch": 2, "machine": MACHINE, "same tokens": {"transformers": 0.5}}
    cell["seconds"] = {"ours": ours, "transformers": theirs}
    sides = {"transformers": {"torch": "1"}}
    return {"policy": "snapkv", "new": 8, "jax": "0", "shape": SHAPE, "others": sides, "cells": [cell]} | other


def test_ratios_are_within_a_repeat_and_seconds_are_held_against_the_floor():
    report = report_of()
    cell, shape = report["cells"][0], TransformerConfig(**SHAPE)
    assert ratio(cell, ("transformers", "decode"), ("ours", "decode 1")) == 2.0
    assert ratio(cell, ("ours", "decode 1"), ("ours", "decode 0.25")) == 4.0
    assert ratio(cell, ("llama.cpp", "decode"), ("ours", "decode 1")) is None
    lines = [line.strip("| ").split(" | ") for line in markdown(report).splitlines() if line.startswith("| float32")]
    read, whole, pruned = lines
    floor = Machine(**MACHINE).floor(reading(shape, 100, 2), 0, "float32")
    assert read == [
        "float32",
        "100",
        "2",
        f"{200 / 3:.0f}",
        f"{3 / floor:.2f}",
        "1.38",
        "44",
        f"{4.5 / floor:.2f}",
        "1.50",
    ]
    flops, moved = decoding(shape, 25, 2, "float32")
    floor = 8 * Machine(**MACHINE).floor(flops, moved, "float32")
    assert pruned[:9] == [
        "float32",
        "100",
        "2",
        "0.25",
        "4.00",
        "0.50",
        f"{16 / 1.5:.1f}",
        f"{1.5 / floor:.2f}",
        "4.00",
    ]
    assert pruned[9:11] == ["0.93", f"{(4 + 0.5 + 1.5) / (3 + 6):.2f}"] and pruned[11:] == ["-", "-", "8.00"]
    assert whole[8:11] == ["1.00", "-", "1.00"] and whole[11] == f"{16 / 12:.1f}"


def test_a_side_with_a_number_format_of_its_own_has_no_floor():
    report = report_of(others={"transformers": {}, "llama.cpp": {}})
    assert "own number format" in markdown(report) and "own number format" not in markdown(report_of())
    report["cells"][0]["seconds"]["llama.cpp"] = {"prefill": [3.0, 6.0], "decode": [8.0, 16.0]}
    lines = [line.strip("| ").split(" | ") for line in markdown(report).splitlines() if line.startswith("| float32")]
    read, whole, _ = lines
    assert read[-3:] == ["44", "-", "1.50"] and read[-6] == "44" and read[-5] != "-"
    assert whole[-3:] == [f"{16 / 12:.1f}", "-", "2.00"] and whole[-5] != "-"


def test_weights_in_8_bits_have_a_table_of_their_own_where_they_were_measured():
    assert "8 bits" not in markdown(report_of())
    report = report_of()
    report["cells"][0]["seconds"]["ours"]["int8 weights"] = [2.0, 4.0]
    line = [line for line in markdown(report).splitlines() if line.startswith("| float32")][-1]
    flops, moved = decoding(TransformerConfig(**SHAPE), 100, 2, "float32", int8_weights=True)
    assert moved < decoding(TransformerConfig(**SHAPE), 100, 2, "float32")[1]
    floor = 8 * Machine(**MACHINE).floor(flops, moved, "float32")
    assert line.strip("| ").split(" | ")[1:] == ["100", "2", f"{16 / 3:.1f}", f"{3 / floor:.2f}", "2.00", "4.00"]


def test_settings_of_an_earlier_run_stay_if_it_was_of_the_same_kind(tmp_path):
    report = report_of()
    assert bench_decode.earlier_cells(tmp_path, report) == []
    bench_decode.write(tmp_path, report)
    (kept,) = bench_decode.earlier_cells(tmp_path, report_of(cells=[]))
    assert kept == json.loads(json.dumps(report["cells"][0]))
    again, other = kept | {"same tokens": {}}, kept | {"tokens": 200}
    assert bench_decode.with_cell([kept, other], again) == [other, again]
    with pytest.raises(UserError, match="another new and others"):
        bench_decode.earlier_cells(tmp_path, report_of(new=16, others={}))


def test_policies_that_cannot_be_timed_are_refused(capsys):
    for policy in ("random", "kvzip"):
        with pytest.raises(SystemExit, match="2"):
            bench_decode.parse([f"--policy={policy}"])
        assert f"invalid choice: '{policy}'" in capsys.readouterr().err
    assert set(bench_decode.TIMED) == set(POLICIES) - {"random", "kvzip"}


def test_a_report_is_written_whole_or_not_at_all_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    report = report_of()
    bench_decode.write(tmp_path, report)
    assert not list(tmp_path.glob("*.partial"))
    path = tmp_path / bench_decode.FILE
    whole = path.read_text()

    def stopped(path, data, **_):
        path.write_bytes(data[: len(data) // 2].encode())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(path), "write_text", stopped)
        bench_decode.write(tmp_path, report_of(new=16))
    assert path.read_text() == whole
    for damaged, why in ((whole[:100], "not JSON"), ("[]", "not a report"), ('{"policy": "snapkv"}', "not a report")):
        path.write_text(damaged)
        with pytest.raises(UserError, match=rf"{path.name}: {why}.*; remove it, or choose another --output"):
            bench_decode.earlier_cells(tmp_path, report)
