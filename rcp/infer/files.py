"""`rcp prune`: files in, what is left of them out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rcp.infer.prompt import PrunedPrompt, check_budget, pruner_of
from rcp.infer.trained import load_trained
from rcp.types import UserError


def prune_files(
    workdir: str | Path,
    files: Sequence[str],
    question: str,
    *,
    keep_rate: float | None = None,
    keep_tokens: int | None = None,
    force: Sequence[str] = (),
    group: str = "",
    as_json: bool = False,
) -> list[PrunedPrompt]:
    """`rcp prune`: prints the pruned texts to stdout and the counts to stderr. `files` may hold "-" for stdin.

    Raises:
      UserError: as in `PromptPruner` and `load_trained`; a file that cannot be read.
    """
    check_budget(keep_rate, keep_tokens)  # before anything is loaded
    contexts = [_read(name) for name in files]
    for name, context in zip(files, contexts):
        if not context.strip():
            raise UserError(f"{name}: empty context: expected text, its segments separated by blank lines")
    trained = load_trained(workdir)
    instruction, asked = trained.build.task.ask(question)  # as in the prompts that the scorer learned from
    pruned = pruner_of(trained)(
        contexts,
        [asked] * len(files),
        keep_rate=keep_rate,
        keep_tokens=keep_tokens,
        force=force,
        instruction=instruction,
        group=group,
    )
    for name, found in zip(files, pruned):
        if as_json:
            print(json.dumps({"file": name, **asdict(found)}, ensure_ascii=False))
        else:
            sys.stdout.write(found.text if found.text.endswith("\n") else found.text + "\n")
        counts = f"{name}: kept {found.kept} of {found.tokens} context tokens (asked for {found.asked}), "
        counts += f"from {len(found.kept_segments)} of {found.segments} segments"
        print(counts + (f"; {found.note}" if found.note else ""), file=sys.stderr)
    return pruned


def _read(name: str) -> str:
    """The text of a file, letter by letter: its line ends stay as they are."""
    try:
        return (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read as text: {error}") from error
