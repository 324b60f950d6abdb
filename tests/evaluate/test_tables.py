"""Rows, intervals and paired differences, and the files they are written to."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rcp.evaluate import plots, tables
from rcp.evaluate.results import Results

N = 300


@pytest.fixture(scope="module")
def results() -> Results:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=N)
    settings = (("full", 1.0), ("none", 0.0), ("random", 0.5), ("random", 0.25), ("ours", 0.5), ("ours", 0.25))
    shift = np.array([0.5, 2.0, 1.0, 1.5, 0.0, 0.1])[:, None]
    context = rng.integers(50, 150, N)
    rates = np.array([rate for _, rate in settings])[:, None]
    return Results(
        settings=settings,
        index=np.arange(N),
        group=np.arange(N) % 3 % 2,
        context=context,
        answer_tokens=np.full(N, 2),
        kept=np.floor(rates * context).astype(int),
        nll=5 + hard + shift + 0.05 * rng.normal(size=(6, N)),
        em=rng.random((6, N)) < np.array([0.2, 0.0, 0.3, 0.2, 0.9, 0.8])[:, None],
        prune_seconds=np.arange(6) / 1e3,
        model_seconds=np.arange(6) / 1e2,
        groups=("one-hop", "two-hop"),
    )


def test_rows_have_the_promised_keys_and_values(results: Results) -> None:
    rows = tables.rows(results, resamples=200, seed=3)
    promised = "method keep_rate_asked keep_rate_got metric value ci_low ci_high n seed prune_seconds model_seconds"
    assert set(promised.split()) | {"group"} == set(vars(rows[0]))
    assert len(rows) == 3 * 2 * 6
    assert {row.group: row.n for row in rows} == {"all": N, "one-hop": 200, "two-hop": 100}
    for row in rows:
        members = np.full(N, True) if row.group == "all" else results.group == results.groups.index(row.group)
        place = results.settings.index((row.method, row.keep_rate_asked))
        np.testing.assert_allclose(row.value, getattr(results, row.metric)[place, members].mean())
        assert row.ci_low <= row.value <= row.ci_high
        assert abs(row.keep_rate_got - row.keep_rate_asked) < 0.02
        assert (row.prune_seconds, row.model_seconds, row.seed) == (place / 1e3, place / 1e2, 3)


def test_the_interval_is_as_wide_as_theory_says() -> None:
    """For a mean of n normal values the 95 % interval is mean +- 1.96 sd / sqrt(n)."""
    values = np.random.default_rng(1).normal(size=(1, 2000))
    low, high = tables.interval(tables.bootstrap_means(values, 4000, [0])[0])
    half = 1.96 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose([low, high], values.mean() + np.array([-half, half]), atol=0.05 * half)


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for i in range(400):
        low, high = tables.interval(tables.bootstrap_means(rng.random((1, 150)) < 0.3, 300, [i])[0])
        hits += low <= 0.3 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_intervals_repeat_with_the_seed(results: Results) -> None:
    one, two, other = (tables.rows(results, resamples=100, seed=seed) for seed in (0, 0, 1))
    assert one == two
    assert [row.ci_low for row in one] != [row.ci_low for row in other]


def test_paired_differences_are_narrower_than_unpaired(results: Results) -> None:
    rows = {(r.group, r.method, r.keep_rate_asked, r.metric): r for r in tables.rows(results, resamples=500, seed=0)}
    paired = tables.differences(results, resamples=500, seed=0)
    others = ("full", "none", "random")
    assert {(d.method, d.keep_rate) for d in paired} == {(m, r) for m in others for r in (0.5, 0.25)}
    for entry in (d for d in paired if d.group == "all" and d.metric == "nll" and d.method == "random"):
        ours, random = rows["all", "ours", entry.keep_rate, "nll"], rows["all", "random", entry.keep_rate, "nll"]
        np.testing.assert_allclose(entry.difference, ours.value - random.value)
        assert entry.ci_low <= entry.difference <= entry.ci_high < 0
        assert entry.ci_high - entry.ci_low < 0.2 * (ours.ci_high - ours.ci_low)


@pytest.fixture(scope="module")
def drawn(results: Results) -> Results:
    """Of a pruner that decides itself how much it keeps: four tenths."""
    first = slice(0, 5)
    kept = results.kept[first].copy()
    kept[4] = np.floor(0.4 * results.context)
    arrays = {name: getattr(results, name)[first] for name in ("nll", "em", "prune_seconds", "model_seconds")}
    settings = (*results.settings[:4], ("ours", 1.0))
    return replace(results, settings=settings, kept=kept, unswept=("full", "none", "ours"), **arrays)


@pytest.mark.filterwarnings("error")
def test_a_pruner_without_a_budget_faces_every_method_at_every_budget(drawn: Results, tmp_path: Path) -> None:
    rows = tables.rows(drawn, resamples=200, seed=0)
    (own,) = [row for row in rows if (row.group, row.metric, row.method) == ("all", "em", "ours")]
    assert np.isnan(own.keep_rate_asked) and 0.38 < own.keep_rate_got < 0.4 and not own.swept
    paired = tables.differences(drawn, resamples=200, seed=0)
    assert {(d.method, d.keep_rate) for d in paired} == {
        (m, r) for m in ("full", "none", "random") for r in (0.5, 0.25)
    }
    for entry in (d for d in paired if d.group == "all" and d.metric == "em" and d.method == "random"):
        other = drawn.em[drawn.settings.index(("random", entry.keep_rate))]
        np.testing.assert_allclose(entry.difference, own.value - other.mean())

    header, _, *lines = [line for line in tables.markdown(rows).splitlines() if line.startswith("|")][:6]
    assert header.startswith("| method | em @ 0.5 | em @ 0.25 | kept |")
    cells = [cell.strip("* ") for cell in lines[-1].split("|")[1:5]]
    assert cells[0] == "ours" and cells[1] == cells[2] != "" and cells[3] == f"{own.keep_rate_got:.2f}"
    axis = plots.figure(rows).axes[0]
    assert any(np.allclose(line.get_xdata(), [own.keep_rate_got]) for line in axis.get_lines())
    plots.write(tmp_path / "report.png", rows)

    tables.write_table(tmp_path / "report", tables.overall(rows))
    entries = json.loads((tmp_path / "report.json").read_text())
    assert {entry["keep_rate_asked"] for entry in entries if entry["method"] == "ours"} == {None}
    tables.write_results(tmp_path / "results.npz", drawn)
    assert tables.read_results(tmp_path / "results.npz").unswept == drawn.unswept


def test_a_pruner_without_a_budget_alone_has_a_column(drawn: Results) -> None:
    rows = [row for row in tables.rows(drawn, resamples=50, seed=0) if row.method != "random"]
    table = tables.grid(rows, "all", "em")
    assert table.header[:3] == ("method", "em", "kept") and all(line[1] for line in table.lines)


def test_files_hold_the_same_numbers(results: Results, tmp_path: Path) -> None:
    rows = tables.rows(results, resamples=50, seed=0)
    entries = tables.overall(rows)
    tables.write_table(tmp_path / "report", entries)
    assert json.loads((tmp_path / "report.json").read_text()) == entries
    with (tmp_path / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == [row.value for row in rows if row.group == "all"]


def test_the_report_has_exactly_the_promised_keys_and_each_number_once(results: Results) -> None:
    entries = tables.overall(tables.rows(results, resamples=50, seed=0))
    promised = "method keep_rate_asked keep_rate_got metric value ci_low ci_high n seed prune_seconds model_seconds"
    assert all(list(entry) == promised.split() for entry in entries)
    assert len({(entry["method"], entry["keep_rate_asked"], entry["metric"]) for entry in entries}) == len(entries)


def test_results_can_be_read_back(results: Results, tmp_path: Path) -> None:
    tables.write_results(tmp_path / "results.npz", results)
    again = tables.read_results(tmp_path / "results.npz")
    assert again.settings == results.settings and again.groups == results.groups
    assert tables.rows(again, resamples=50, seed=0) == tables.rows(results, resamples=50, seed=0)


def test_markdown_has_a_line_a_method(results: Results) -> None:
    text = tables.markdown(tables.rows(results, resamples=50, seed=0))
    assert text.count("### ") == 6
    header, rule, *lines = [line for line in text.splitlines() if line.startswith("|")][:6]
    assert header.startswith("| method | em @ 0.5 | em @ 0.25 | kept |")
    assert rule.count("---") == header.count("|") - 1
    assert [line.split("|")[1].strip() for line in lines] == ["full", "none", "random", "**ours**"]
    assert all(line.count("|") == header.count("|") for line in lines)


@pytest.mark.parametrize(("decoded", "words"), [(False, "teacher-forced"), (True, "decoded greedily and judged")])
def test_the_legend_says_what_exact_match_is(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoded: bool, words: str
) -> None:
    tables.write_results(tmp_path / "results.npz", replace(results, decoded=decoded))
    again = tables.read_results(tmp_path / "results.npz")
    rows = tables.rows(again, resamples=50, seed=0)
    tables.print_console(rows, decoded=again.decoded)
    for text in (tables.markdown(rows, decoded=again.decoded), capsys.readouterr().out):
        assert words in " ".join(text.split())


def test_console_shows_every_method(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_console(tables.rows(results, resamples=50, seed=0))
    printed = capsys.readouterr().out
    assert all(
        word in printed for word in ("full", "none", "random", "ours", "em @ 0.25", "exact match, two-hop (n = 100)")
    )


def test_plot_draws_every_method_at_its_value(results: Results, tmp_path: Path) -> None:
    rows = tables.rows(results, resamples=50, seed=0)
    figure = plots.figure(rows)
    axis = figure.axes[0]
    assert len(figure.axes) == 3 * 2
    assert axis.get_legend_handles_labels()[1] == ["full", "none", "random", "ours"]
    values = {r.value for r in rows if r.group == "all" and r.metric == "em" and r.method == "ours"}
    lines = [line.get_ydata() for line in axis.get_lines()]
    assert any(set(np.asarray(line).tolist()) == values for line in lines)
    plots.write(tmp_path / "report.png", rows)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
def test_a_likelihood_that_is_not_available_is_said_and_breaks_nothing(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = replace(results, nll=np.full_like(results.nll, np.nan), decoded=True, how="said so")
    rows = tables.rows(blind, resamples=50, seed=0)
    assert [row for row in rows if row.metric == "em"] == [
        row for row in tables.rows(results, resamples=50, seed=0) if row.metric == "em"
    ]
    tables.write_table(tmp_path / "report", tables.overall(rows))
    tables.write_table(tmp_path / "paired", [vars(d) for d in tables.differences(blind, resamples=50, seed=0)])
    for name in ("report", "paired"):
        text = (tmp_path / f"{name}.json").read_text() + (tmp_path / f"{name}.csv").read_text()
        assert "null" in text and "nan" not in text.lower()
    tables.print_console(rows, decoded=blind.how)
    plots.write(tmp_path / "report.png", rows)
    for text in (tables.markdown(rows, decoded=blind.how), capsys.readouterr().out):
        assert "not available" in text and "nan" not in text and "em: said so." in text
    tables.write_results(tmp_path / "results.npz", blind)
    assert tables.read_results(tmp_path / "results.npz").how == "said so"
