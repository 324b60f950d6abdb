"""An HTML page that shows which tokens were kept. It stands alone: no scripts, no fonts, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from rcp.evaluate.sweep import Results, Shown
from rcp.types import Role

STYLE = """
body { font: 15px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f23; }
h2 { margin-top: 2.4rem; border-bottom: 1px solid #ddd; font-size: 1.15rem; }
h3 { margin: 1rem 0 .2rem; font-size: .95rem; }
p.prompt { margin: .1rem 0 .6rem; white-space: pre-wrap; font-family: ui-monospace, monospace; font-size: .85rem; }
.kept { background: #d7f0dc; } .dropped { color: #b6bcc2; text-decoration: line-through; }
.fixed { color: #57606a; } .answer { background: #fff1c9; } .ok { color: #1a7f37; } .no { color: #b42318; }
summary { cursor: pointer; } small { color: #57606a; font-weight: normal; }
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e6e6e6; } .kept { background: #1f4d2b; }
.dropped { color: #5a6169; } .answer { background: #5b4a14; } .fixed, small { color: #9aa4ae; } }
"""


def page(results: Results, decode: Callable[[Sequence[int]], str], *, first: str = "ours") -> str:
    """The page: for each shown example, what every setting kept; `first`'s settings open, the others folded."""
    body = [
        "<h1>What was kept</h1><p><span class=kept>kept</span> <span class=dropped>dropped</span> "
        "<span class=fixed>instruction and question, always kept</span> <span class=answer>gold answer</span></p>"
    ]
    order = sorted(range(len(results.settings)), key=lambda i: (results.settings[i][0] != first, i))
    for number, shown in enumerate(results.shown):
        group = results.groups[results.group[number]] if len(results.groups) > 1 else ""
        body.append(f"<h2>Example {shown.index} <small>{escape(group)}</small></h2>")
        for i in order:
            method, rate = results.settings[i]
            verdict = "<span class=ok>answered</span>" if results.em[i, number] else "<span class=no>missed</span>"
            head = (
                f"{escape(method)} at {rate:g} <small>{results.kept[i, number]} of {results.context[number]} context "
                f"tokens; answer NLL {results.nll[i, number]:.2f}; {verdict}</small>"
            )
            text = f"<p class=prompt>{marked(shown, shown.keep[i], decode)}</p>"
            opened = " open" if method == first else ""
            body.append(f"<details{opened}><summary>{head}</summary>{text}</details>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>What was kept</title><style>{STYLE}</style><body>" + "\n".join(body) + "</body></html>\n"
    )


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
