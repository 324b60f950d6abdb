"""Metrics of a run: `metrics.jsonl`, TensorBoard, and the console.

`metrics.jsonl` holds one object a logged step: `step` (counted through all stages), `stage`, `loss`, every other metric
of the step, `tokens_per_second`. Numbers that are not finite are null. After a resume the file goes on behind what
checkpoints stand for: no step stands there twice and none is missing.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rcp.config import Config
from rcp.types import UserError

PLAIN_SECONDS = 5.0  # without a terminal, at most one line in this time


class MetricsLog:
    """`metrics.jsonl` and TensorBoard files in a run's folder."""

    def __init__(self, workdir: str | Path, *, upto: Mapping[str, int] | None = None, writing: bool = True):
        """Opens for appending and drops every row that no checkpoint stands for, a torn last line included.

        Args:
          upto: the last step of each stage that is kept, as `step` counts them; of a stage that is not named, none is.
          writing: without it nothing is opened and nothing written (all processes but the first).
        """
        from tensorboardX import SummaryWriter

        self.path = Path(workdir) / "metrics.jsonl"
        self._file = None
        if not writing:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        upto = upto or {}
        _truncate(self.path, upto)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=max(upto.values(), default=0) + 1)

    def write(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Adds the row of one step; it is the operating system's when this returns, so that a kill does not lose it."""
        if self._file is None:
            return
        row: dict[str, Any] = {"step": step, "stage": stage}
        row |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)

    def flush(self) -> None:
        """Puts everything on disk; called before a checkpoint that stands for these rows."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def _truncate(path: Path, upto: Mapping[str, int]) -> None:
    """Keeps the rows of each stage up to its step and rewrites the file at once, whenever the process is killed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
            if line.endswith("\n") and row["step"] <= upto.get(row["stage"], 0):
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    partial = path.with_suffix(".jsonl.tmp")
    partial.write_text("".join(kept))
    partial.replace(path)


class Speed:
    """Tokens a second over the recent past, compilation left out."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._rate: float | None = None
        self._first = True

    def update(self, tokens: int) -> float:
        """Counts the tokens of one finished step; an exponential average with a memory of about ten steps."""
        now = time.perf_counter()
        rate = tokens / max(now - self._last, 1e-9)
        self._last = now
        if self._first:  # held the compilation
            self._first = False
            return rate
        self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
        return self._rate


class Bar:
    """Progress of one stage: a bar with ETA on a terminal, else a line every few seconds. A context manager."""

    def __init__(self, stage: str, total: int, done: int, console: Console | None = None, *, quiet: bool = False):
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False)
        self._stage, self._total, self._begin = stage, total, done
        self._start = time.perf_counter()
        self._printed = -math.inf
        self._progress: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._task = self._progress.add_task(stage, total=total, completed=done, text="")

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, done: int, metrics: Mapping[str, float], speed: float) -> None:
        """Shows that `done` steps are taken, with the loss of the last and tokens a second."""
        shown = "loss" if "loss" in metrics else next(iter(metrics), "")
        text = f"{shown} {metrics.get(shown, math.nan):.4f}  {_short(speed)} tokens/s"
        if metrics.get("nonfinite_run"):
            text += f"  skipped {metrics['nonfinite_run']:.0f} in a row"
        if self._progress:
            self._progress.update(self._task, completed=done, text=text)
            return
        now = time.perf_counter()
        if done < self._total and now - self._printed < PLAIN_SECONDS:
            return
        self._printed = now
        left = (now - self._start) / max(done - self._begin, 1) * (self._total - done)
        self.say(f"{self._stage} {done}/{self._total}  {text}  {_clock(left)} left")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._progress:
            self._console.print(text, markup=False)
        elif not self._quiet:
            print(text, file=self._console.file or sys.stderr, flush=True)


class Report:
    """Reads metrics one step late, writes and shows them, and stops a run that is no longer finite."""

    def __init__(
        self,
        stage: str,
        steps: int,
        begin: int,
        config: Config,
        log: MetricsLog,
        bar: Bar,
        fetch: Callable[[Any], Mapping[str, Any]],
    ):
        """`steps` of this stage, `begin` of those before it; `fetch` turns a step's metrics into numbers, waiting."""
        self._stage, self._steps, self._begin = stage, steps, begin
        self._config, self._log, self._bar, self._fetch, self._speed = config, log, bar, fetch, Speed()
        self._pending: tuple[int, Any, int] | None = None
        self._run = 0

    def add(self, step: int, metrics: Any, tokens: int) -> None:
        """Takes a step's metrics, still on their way, after reading those of the step before."""
        self.drain()
        self._pending = (step, metrics, tokens)

    def drain(self) -> None:
        """Reads what is pending. Waits for its step.

        Raises:
          UserError: too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        step, metrics, tokens = self._pending
        self._pending = None
        values = {name: float(value) for name, value in self._fetch(metrics).items()}
        speed = self._speed.update(tokens)
        self._run = self._run + 1 if not math.isfinite(values.get("loss", 0.0)) else 0
        if step % self._config.train.log_every == 0 or step == self._steps:
            self._log.write(self._begin + step, self._stage, values | {"tokens_per_second": speed})
        self._bar.update(step, values, speed)
        self._check(step, values)

    def _check(self, step: int, values: Mapping[str, float]) -> None:
        run = int(values.get("nonfinite_run", self._run))
        if run < self._config.optim.max_nonfinite:
            return
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        terms = [name for name in bad if name not in ("loss", "grad_norm")] or bad or ["the gradient"]
        first = f" since step {step - run + 1}" if run > 1 else ""
        raise UserError(
            f"stage {self._stage}, step {step}: {', '.join(terms)} not finite{first} ({run} steps in a row were "
            f"skipped, config.optim.max_nonfinite is {self._config.optim.max_nonfinite}). Lower optim.learning_rate or "
            f"the weight of that objective; {self._log.path} has what led to it"
        )


def _short(number: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
