"""`rcp tables` without measuring: the flags that a table takes, and what its figure draws and says."""

from __future__ import annotations

from types import ModuleType

import pytest
from matplotlib.figure import Figure

from experiments import kv_policies, more_candidates, reasoning, ruler, table_figure
from experiments.grid import Table, parser_of, settings_of
from experiments.measure import Part
from experiments.table_lines import Line
from rcp.types import UserError


@pytest.mark.parametrize(
    ("flags", "budget", "said"),
    [
        (["--keep-tokens=256,512"], "256 tokens", "256 tokens"),
        (["--keep-tokens=512,256", "--keep-rates=.5"], "256 tokens", "256 tokens"),
        (["--keep-tokens=", "--keep-rates=.25,.5"], "0.25", "0.25 of their tokens"),
    ],
)
def test_over_candidates_the_figure_draws_the_budget_that_it_names(flags: list[str], budget: str, said: str) -> None:
    settings = settings_of(parser_of("mine", "", shots=(4, 8)).parse_args(flags))
    assert more_candidates.x_label(settings) == f"candidates, at {said}"
    at = lambda setting, method, key, value: Line("", setting.label, method, key, "nll", value)  # noqa: E731
    found = [[at(s, "bm25", "1", 9.0), at(s, "bm25", budget, s.at), at(s, "few", "512 tokens", 5.0)] for s in settings]
    table = Table("", "", settings, (), x="setting")
    axis = Figure().subplots()
    table_figure._curves(axis, table, [(Part(s, (), ()), lines) for s, lines in zip(settings, found, strict=True)])
    (drawn,) = axis.containers  # nothing of a method that was measured at another budget alone
    assert drawn.get_label() == "bm25" and drawn.lines[0].get_ydata().tolist() == [4.0, 8.0]
    with pytest.raises(UserError, match="nothing to measure"):
        more_candidates.x_label(settings_of(parser_of("mine", "", keep_tokens=()).parse_args([])))


@pytest.mark.parametrize(
    ("table", "flags"),
    [
        (reasoning, ["--readers=a", "--datasets=svamp", "--keep-rates=.5", "--max-answer=9"]),
        (ruler, ["--shots=4", "--max-answer=9"]),
        (kv_policies, ["--shots=4", "--max-answer=9"]),
    ],
)
def test_a_table_refuses_the_flags_that_it_would_not_heed(table: ModuleType, flags: list[str], capsys) -> None:
    for flag in flags:
        with pytest.raises(SystemExit, match="2"):
            table.main([flag, "--budget-minutes=0"])
        assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


def test_the_help_says_the_defaults_that_are_taken() -> None:
    parser = parser_of("mine", "", unset={"methods": "some"}, shots=(4, 8), keep_tokens=(), keep_rates=(0.5,))
    text, options = " ".join(parser.format_help().split()), parser.parse_args([])
    assert "a prompt (default: 4,8)" in text and "tokens (default: none)" in text and "(default: 0.5)" in text
    assert "this order (default: some)" in text and "are kept, for all tables (default: OUTPUT/cells)" in text
    assert (options.shots, options.keep_tokens, options.keep_rates) == ((4, 8), (), (0.5,))
    assert (options.seeds, options.datasets, options.methods) == ((0,), ("gsm8k",), ())
    assert parser.parse_args(["--shots=2", "--keep-rates="]).shots == (2,) and options.budget_minutes is None
