"""Runs the stages of a training run one after the other, resumable at any moment.

The order of work in a step: start it on the device; if due, save a checkpoint; take the next batch from the pipeline
and start its copy; only then wait for the *previous* step's metrics. So the host never holds up the device, and a
checkpoint's pipeline state is exactly the one that gives the next step's batch.

With several processes all of them run this; the first alone writes config, metrics and progress.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import PyTree

from rcp.config import Config
from rcp.config_file import load_config
from rcp.config_saved import differences, fingerprint, save_config
from rcp.train.checkpoint import Checkpoints, Restored, newest_step
from rcp.train.export import is_export, read_export, write_export
from rcp.train.metrics import Bar, MetricsLog, Report
from rcp.train.parallel import Parallel, start_processes
from rcp.train.signals import Stop, stop_on_signals
from rcp.train.state import Step, TrainState
from rcp.types import UserError

Params = dict[str, PyTree]


class Pipeline(Protocol):
    """Endless batches of numpy arrays. `get_state()` names the next batch; fit for json, or text as bytes."""

    def __next__(self) -> Any: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


def count_tokens(batch: Any) -> int:
    """Tokens of a batch that are not padding (0 for batches without `role`)."""
    return int(np.count_nonzero(batch.role)) if hasattr(batch, "role") else 0


@dataclass(frozen=True)
class Stage:
    """One stretch of training with a step, a state and data of its own.

    Attributes:
      name: unique in a run; names its checkpoints' folder and stands in each row of the metrics.
      steps: how many.
      step: the pure step (`rcp.train.state.Step`).
      init_state: from the trained params of the stages before (None in the first; where two have trained the same, the
        later's) to the state before the first step. Must be deterministic: a resumed run calls it again, for the
        structure and for what no checkpoint holds.
      frozen: from the same params to the values that the step reads and does not change.
      make_pipeline: a fresh pipeline at its beginning.
      count_tokens: tokens of a batch, for tokens/s.
      failure: what went wrong outside the step, if anything has: it is raised before what the step made of it is saved.
      weights: fingerprint of the published weights that the stage starts from, if any; its checkpoints carry it.
      decides: what of a config decides the stage, all else at its default, where that is less than the whole and
        nothing that a stage before has trained: such a stage can be taken over from another run that agrees on it.
      prepare: makes and keeps on disk what the pipeline reads, where that takes long: called before the pipeline is
        made, it returns early where the function that it gets says that the run is to stop.
    """

    name: str
    steps: int
    step: Step
    init_state: Callable[[Params | None], TrainState]
    frozen: Callable[[Params | None], PyTree]
    make_pipeline: Callable[[], Pipeline]
    count_tokens: Callable[[Any], int] = count_tokens
    weights: str | None = None
    failure: Callable[[], Exception | None] = lambda: None
    decides: Callable[[Config], Config] | None = None
    prepare: Callable[[Callable[[], bool]], None] | None = None

    def fingerprint(self, config: Config) -> str:
        """Of what its checkpoints stand for."""
        return fingerprint(self.decides(config) if self.decides else config)


@dataclass(frozen=True)
class Result:
    """How a run ended. `state` is numpy; `finished` is False where a signal stopped it (`signal` says which)."""

    finished: bool
    stage: str
    step: int
    state: TrainState
    signal: int | None = None


def run(stages: Sequence[Stage], config: Config, workdir: str | Path, prepared: str | Path | None = None) -> Result:
    """Trains every stage in turn, or goes on from the newest checkpoints in `workdir`.

    A run killed at any moment and started again ends with the parameters of one left alone. SIGTERM and SIGINT end it
    with a checkpoint, after the step under way or, with several processes, at the next checkpoint that is due. While a
    stage prepares what it reads (`Stage.prepare`) there is nothing to save. A second one ends it at once.

    Args:
      prepared: the folder of another run, from which the stages that can be shared (`Stage.decides`) are taken over
        where this one has not begun them and both agree on what decides them.

    Raises:
      UserError: the folder holds checkpoints of another config, or an exported run; `optim.max_nonfinite` steps in
        a row were not finite (step and the term are named); the batch does not divide over the devices; no
        checkpoint can be read; of `prepared` nothing fits, or a stage that does is not finished or of other weights.
    """
    workdir = Path(workdir)
    if is_export(workdir):
        raise UserError(f"{workdir} holds an exported run, which cannot be trained further: choose another --workdir")
    start_processes(config.parallel)
    parallel = Parallel(config.parallel)
    first = parallel.process == 0

    def say(text: str) -> None:
        if first and text:
            print(text, file=sys.stderr, flush=True)

    taken = _finished_elsewhere(stages, config, workdir, Path(prepared), say) if prepared is not None else []
    longer = _longer(stages[-1], config, workdir)
    save_config(config, workdir, begun=_begun(workdir), writing=first)
    say(longer)
    while taken:  # each is let go of once it is written: tables may be large
        stage, end = taken.pop(0)
        checkpoints = _checkpoints(stage, config, workdir)
        try:
            checkpoints.save(end.step, end.state, end.pipeline)
        finally:
            checkpoints.close()
        say(f"{stage.name}: taken over from {prepared}")
        del end
    restored = _restore(stages, config, workdir)
    parallel.wait("restored")  # before any of them writes
    begin = sum(stage.steps for stage in stages[: restored.number])
    log = MetricsLog(workdir, upto=_reached(stages, workdir), writing=first)
    result = None
    try:
        with stop_on_signals() as stop:
            for number in range(restored.number, len(stages)):
                result = _run_stage(stages[number], restored, config, workdir, parallel, log, begin, stop)
                if not result.finished:
                    return result
                begin += stages[number].steps
                if number + 1 < len(stages):
                    restored = _stand(stages[number + 1], number + 1, restored.trained(result.state), config, workdir)
                    parallel.wait(f"stage {number + 1}")  # before any of them writes
    finally:
        log.close()
    assert result is not None
    return result


def restore(stages: Sequence[Stage], config: Config, workdir: str | Path) -> tuple[TrainState, PyTree]:
    """The state (numpy) and frozen values of a run's last stage, from its newest checkpoint or export, for evaluation.

    Raises:
      UserError: nothing is trained there yet, or the last stage has not begun; an export that does not fit.
    """
    at = _trained(stages, config, Path(workdir))
    return at.state, stages[-1].frozen(at.previous)


def export(stages: Sequence[Stage], config: Config, workdir: str | Path, output: str | Path) -> int:
    """Writes what a run has trained, and nothing that only training needs, into the new folder `output`; returns
    the last stage's steps.

    Raises:
      UserError: as in `restore`; `output` is there already.
    """
    workdir = Path(workdir)
    at = _trained(stages, config, workdir)
    origin = {"fingerprint": fingerprint(config), "weights": stages[-1].weights, "step": at.step}
    write_export(Path(output), workdir / "config.json", at.trained(at.state), **origin)
    return at.step


def _trained(stages: Sequence[Stage], config: Config, workdir: Path) -> _At:
    """The last stage, begun."""
    if is_export(workdir):
        return _exported(stages, config, workdir)
    at = _restore(stages, config, workdir, writable=False)
    if at.number < len(stages) - 1 or at.step == 0:
        raise UserError(f"{workdir} holds no trained {stages[-1].name} yet: run rcp train --workdir={workdir} first")
    return at


def _exported(stages: Sequence[Stage], config: Config, workdir: Path) -> _At:
    """The end of an exported run. Its optimizer's state is that of a beginning."""
    at = _begin(stages[0], 0, None)
    for number, stage in enumerate(stages[1:], 1):
        at = _begin(stage, number, at.trained(at.state))
    like = at.trained(at.state)
    params, step = read_export(workdir, like, fingerprint=fingerprint(config), weights=stages[-1].weights)
    state = at.state._replace(step=np.int32(step), params={name: params[name] for name in at.state.params})
    return replace(at, step=step, state=state, previous=params)


@dataclass(frozen=True)
class _At:
    """Where a run stands: stage number, steps taken in it, its state, its pipeline's, params of the stages before."""

    number: int
    step: int
    state: TrainState
    pipeline: Any
    previous: Params | None

    def trained(self, state: TrainState) -> Params:
        """The params that this stage, ending in `state`, and those before it have trained."""
        return {**(self.previous or {}), **state.params}


def _begin(stage: Stage, number: int, previous: Params | None) -> _At:
    return _At(number, 0, stage.init_state(previous), None, previous)


def _restore(stages: Sequence[Stage], config: Config, workdir: Path, writable: bool = True) -> _At:
    """Walks over the finished stages to the one that is under way."""
    at, previous = None, None
    for number, stage in enumerate(stages):
        at = _stand(stage, number, previous, config, workdir, writable)
        if at.step < stage.steps:
            break
        previous = at.trained(at.state)
    assert at is not None
    return at


def _stand(
    stage: Stage, number: int, previous: Params | None, config: Config, workdir: Path, writable: bool = True
) -> _At:
    """A stage from its newest checkpoint, or at its beginning. One behind a stage that is under way may have one: it
    was taken over, or the other had to be trained anew."""
    begun = _begin(stage, number, previous)
    if not _folder(workdir, stage).exists():
        return begun
    checkpoints = _checkpoints(stage, config, workdir, writable)
    try:
        found = checkpoints.restore(begun.state)
    finally:
        checkpoints.close()
    return begun if found is None else _At(number, found.step, found.state, found.pipeline, previous)


def _finished_elsewhere(
    stages: Sequence[Stage], config: Config, workdir: Path, other: Path, say: Callable[[str], None]
) -> list[tuple[Stage, Restored]]:
    """The end of each stage that can be shared and fits, from the run in `other`, where this one has no checkpoint."""
    shared = [stage for stage in stages if stage.decides]
    if not shared:
        raise UserError(
            f"--prepared={other}: this config has no stage that could be taken over; expected config.train.prepare "
            "and a published model, or config.eviction.tasks"
        )
    missing = [stage for stage in shared if not newest_step(_folder(workdir, stage))]
    unfit = {stage.name: lines for stage in missing if (lines := _unfit(stage, config, other))}
    reasons = "\n".join(f"  {name}: {line}" for name, lines in unfit.items() for line in lines)
    if len(unfit) == len(shared):
        raise UserError(f"--prepared={other}: nothing of it fits this config:\n{reasons}")
    if unfit:
        say(f"computed here, since in {other} it does not fit this config:\n{reasons}")
    return [(stage, _end_of(stage, config, other)) for stage in missing if stage.name not in unfit]


def _unfit(stage: Stage, config: Config, other: Path) -> list[str]:
    """What keeps a stage of the run in `other` from being this one's."""
    assert stage.decides is not None
    if not _folder(other, stage).exists():
        return [f"expected the folder of a run with {_folder(other, stage)}"]
    there, here = stage.decides(load_config(other / "config.json")), stage.decides(config)
    lines = [line.strip() for line in differences(there, here)]
    if there.train.steps != here.train.steps:
        lines.append(f"config.train.steps: {there.train.steps} there, {here.train.steps} now")
    return lines


def _end_of(stage: Stage, config: Config, other: Path) -> Restored:
    source = _checkpoints(stage, config, other, writable=False)
    try:
        found = source.restore(stage.init_state(None))
    except UserError as error:
        raise UserError(f"--prepared={other}: {error}") from None
    finally:
        source.close()
    if found is None or found.step < stage.steps:
        raise UserError(
            f"--prepared={other}: its stage {stage.name} is not finished: run rcp train --workdir={other} first"
        )
    return found


def _reached(stages: Sequence[Stage], workdir: Path) -> dict[str, int]:
    """The step that the newest checkpoint of each stage stands for, where it has one, counted through all stages."""
    begin, reached = 0, {}
    for stage in stages:
        if step := newest_step(_folder(workdir, stage)):
            reached[stage.name] = begin + step
        begin += stage.steps
    return reached


def _begun(workdir: Path) -> bool:
    """Whether a stage has a checkpoint, also one that this config does not have."""
    return any(newest_step(folder) for folder in (workdir / "checkpoints").glob("*") if folder.is_dir())


def _longer(stage: Stage, config: Config, workdir: Path) -> str:
    """A warning where the stage goes on behind a learning rate, or what else runs over all of its steps, that has run
    over fewer; else empty."""
    done, saved = newest_step(_folder(workdir, stage)), workdir / "config.json"
    rate, others = config.optim.schedule != "constant", _over_all_steps(config)
    if not done or not (rate or others) or not saved.exists():
        return ""
    before = load_config(saved).train.steps
    if before >= config.train.steps:
        return ""
    said, where = [], f"where the run goes on, after step {done}"
    if rate:
        schedule = f'config.optim.schedule "{config.optim.schedule}"'
        said.append(f"The learning rate ({schedule}) falls over all of them, so that it jumps up {where}")
    said += [f"{what} changes over all of them, so that it goes back {where}" for what in others]
    return (
        f"{stage.name}: config.train.steps was {before} and is {config.train.steps}. {'. '.join(said)}: "
        f"the run ends otherwise than one of {config.train.steps} steps from the beginning"
    )


def _over_all_steps(config: Config) -> list[str]:
    """What in the last stage, besides the learning rate, depends on how many steps there are."""
    if config.dynamic.on:
        return ["The growth of alpha (config.dynamic.alpha_steps 0)"] if not config.dynamic.alpha_steps else []
    if config.eviction.tasks:
        return []
    return [
        f'The weight of config.objectives.{name} (schedule "{c.schedule}", steps 0)'
        for name, c in config.objectives.items()
        if c.schedule != "constant" and not c.steps
    ]


def _folder(workdir: Path, stage: Stage) -> Path:
    return workdir / "checkpoints" / stage.name


def _checkpoints(stage: Stage, config: Config, workdir: Path, writable: bool = True) -> Checkpoints:
    return Checkpoints(
        _folder(workdir, stage),
        fingerprint=stage.fingerprint(config),
        weights=stage.weights,
        keep=config.train.keep,
        writable=writable,
    )


def _run_stage(
    stage: Stage, at: _At, config: Config, workdir: Path, parallel: Parallel, log: MetricsLog, begin: int, stop: Stop
) -> Result:
    """One stage from where it stands to its end. `begin`: steps of the stages before it."""
    done, final = at.step, at.state
    if done >= stage.steps:
        return Result(True, stage.name, done, final)
    step_fn = parallel.compile(stage.step)
    state, frozen = parallel.place_state(at.state), parallel.place_frozen(stage.frozen(at.previous))
    if stage.prepare is not None:
        stage.prepare(lambda: stop.signal is not None)
        if _stopping(stop, parallel, saving=True):
            return Result(False, stage.name, done, parallel.fetch(state), stop.signal)
    checkpoints = _checkpoints(stage, config, workdir)
    pipeline = stage.make_pipeline()
    if at.pipeline is not None:
        pipeline.set_state(at.pipeline)
    try:
        with Bar(stage.name, stage.steps, done, quiet=parallel.process > 0) as bar:
            if done:
                bar.say(f"{stage.name}: going on after step {done}")
            report = Report(stage.name, stage.steps, begin, config, log, bar, parallel.fetch)
            tokens, batch = _next(stage, pipeline, parallel)
            while True:
                state, metrics = step_fn(state, frozen, batch)
                done += 1
                saving = done == stage.steps or done % config.train.checkpoint_every == 0
                ending = done == stage.steps or _stopping(stop, parallel, saving)
                saving = saving or ending
                if saving:
                    report.add(done, metrics, tokens)
                    report.drain()  # every row up to `done` is on disk before the checkpoint that stands for them
                    _raise(stage.failure())
                    log.flush()
                    final = parallel.fetch(state)
                    checkpoints.save(done, final, pipeline.get_state())
                if ending:
                    break
                counted = tokens
                tokens, batch = _next(stage, pipeline, parallel)
                if not saving:
                    _raise(stage.failure())
                    report.add(done, metrics, counted)
    except UserError:  # steps that are not finite, say: what made them so goes first
        _raise(stage.failure())
        raise
    finally:
        checkpoints.close()
    return Result(done >= stage.steps, stage.name, done, final, None if done >= stage.steps else stop.signal)


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def _stopping(stop: Stop, parallel: Parallel, saving: bool) -> bool:
    """Whether to end here for a signal. Several processes have to agree, which costs time: only where they save."""
    if parallel.processes == 1:
        return stop.signal is not None
    return saving and parallel.any_process(stop.signal is not None)


def _next(stage: Stage, pipeline: Pipeline, parallel: Parallel) -> tuple[int, Any]:
    """Tokens of all processes (as many as of this one in each), and the batch on its way."""
    batch = next(pipeline)
    return stage.count_tokens(batch) * parallel.processes, parallel.place_batch(batch)
