"""An HTML page that shows which tokens were kept. It stands alone: no scripts, no fonts, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from rcp.evaluate.results import Results, Shown
from rcp.types import Role

STYLE = """
:root { color-scheme: light dark; --text: #1b1f23; --back: #ffffff; --line: #d0d7de; --quiet: #57606a;
--kept: #cdebd3; --dropped: #767d84; --answer: #fff1c9; --yes: #1a7f37; --no: #b42318; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --back: #14171a; --line: #3a424a; --quiet: #9aa4ae;
--kept: #1f4d2b; --dropped: #8b949e; --answer: #5b4a14; --yes: #56d364; --no: #ff8a80; } }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
color: var(--text); background: var(--back); }
h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); font-size: 1.15rem; }
p.prompt { margin: .3rem 0 .8rem; white-space: pre-wrap; overflow-wrap: anywhere;
font: .85rem/1.6 ui-monospace, monospace; }
.kept { background: var(--kept); } .dropped { color: var(--dropped); text-decoration: line-through; }
.fixed, small { color: var(--quiet); } .answer { background: var(--answer); }
.yes { color: var(--yes); } .no { color: var(--no); }
summary { cursor: pointer; } small { font-weight: normal; }
"""


def page(results: Results, decode: Callable[[Sequence[int]], str], *, first: str = "ours") -> str:
    """The page: for each shown example, what every setting kept; `first`'s settings open, the others folded."""
    exact = "decoded and judged by the task" if results.decoded else "every token of the gold answer is the likeliest"
    exact = results.how or exact
    body = [
        "<h1>What was kept</h1>",
        "<p><span class=kept>kept</span> <span class=dropped>dropped</span> "
        "<span class=fixed>instruction and question, always kept</span> <span class=answer>gold answer</span></p>",
        f"<p>Each line is a method at a keep rate; click to see what it left. "
        f"<span class=yes>answered</span> or <span class=no>missed</span>: exact match ({exact}).</p>",
    ]
    order = sorted(range(len(results.settings)), key=lambda i: (results.settings[i][0] != first, i))
    for number, shown in enumerate(results.shown):
        group = results.groups[results.group[number]] if len(results.groups) > 1 else ""
        body.append(f"<h2>Example {shown.index}{f' <small>{escape(group)}</small>' if group else ''}</h2>")
        for i in order:
            method, rate = results.settings[i]
            verdict = "<span class=yes>answered</span>" if results.em[i, number] else "<span class=no>missed</span>"
            at = "" if method in results.unswept else f" at {rate:g}"
            head = (
                f"{escape(method)}{at} <small>{results.kept[i, number]} of {results.context[number]} context "
                f"tokens;{_likelihood(results.nll[i, number])} {verdict}</small>"
            )
            text = f"<p class=prompt>{marked(shown, shown.keep[i], decode)}</p>"
            opened = " open" if method == first else ""
            body.append(f"<details{opened}><summary>{head}</summary>{text}</details>")
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What was kept</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _likelihood(nll: float) -> str:
    return "" if np.isnan(nll) else f" answer NLL {nll:.2f};"


def marked(shown: Shown, keep: np.ndarray, decode: Callable[[Sequence[int]], str]) -> str:
    """The prompt as HTML, runs of tokens of one fate in one span. Tokens of a run are decoded together."""

    def fate(place: int) -> str:
        if shown.role[place] == Role.ANSWER:
            return "answer"
        if shown.role[place] != Role.CONTEXT:
            return "fixed"
        return "kept" if keep[place] else "dropped"

    out = []
    for name, run in groupby(range(len(shown.tokens)), key=fate):
        text = decode([int(shown.tokens[place]) for place in run])
        out.append(f"<span class={name}>{escape(text)}</span>")
    return "".join(out)


def write(path: Path, results: Results, decode: Callable[[Sequence[int]], str]) -> None:
    path.write_text(page(results, decode), encoding="utf-8")
