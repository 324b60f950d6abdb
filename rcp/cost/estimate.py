"""Everything `rcp cost` says, as plain numbers: memory, work, training, and each device's times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rcp.config import Config
from rcp.cost.answering import Answer, Setting, break_even, evicted, pruned, whole
from rcp.cost.device import Device
from rcp.cost.memory import cache_bytes, optimizer_bytes, parameter_bytes, reading_bytes, training
from rcp.cost.scoring import features, network, scorer_parameters
from rcp.cost.work import FLOAT32, SIZES, Stored, Work, decoded_by, forward, parameters, train_step
from rcp.nn.parameters import TransformerConfig

KEEP, EVICT = "keep", "evict"  # a prompt pruned before it is read, a cache pruned after


@dataclass(frozen=True)
class Request:
    """What is asked about.

    Attributes:
      config: its sections `model` (dtype, remat), `scorer`, `data` (batch and answers of training), `policy`, `optim`.
      batch: prompts at a time in use. context, fixed, new: tokens of the context, of instruction and question, of the
        answer. segments: of the context. longest: prompt length up to which the break-even is looked for.
      int8_weights: tokens are decoded by weights in 8 bits.
    """

    shape: TransformerConfig
    config: Config
    batch: int
    context: int
    fixed: int
    new: int
    segments: int
    keep_rates: Sequence[float]
    longest: int
    int8_weights: bool = False

    @property
    def stored(self) -> Stored:
        size = SIZES[self.config.model.dtype]
        return Stored(size, size, self.int8_weights)

    def setting(self, keep_rate: float) -> Setting:
        return Setting(
            self.shape,
            self.config.scorer,
            self.stored,
            self.batch,
            self.fixed,
            self.new,
            keep_rate,
            self.segments,
        )


def estimate(request: Request, devices: Sequence[Device]) -> dict[str, Any]:
    """Numbers in bytes, FLOPs and seconds; None where a device has no published peak for the dtype."""
    answers, scorer = _answers(request), request.config.scorer
    held = {name: _held(request, answer) for name, answer in answers.items()}
    trained = _training(request)
    return {
        "model": {**asdict(request.shape), "parameters": parameters(request.shape)},
        "scorer": {**asdict(scorer), "parameters": scorer_parameters(request.shape, scorer)},
        "dtype": request.config.model.dtype,
        "int8_weights": request.int8_weights,
        "batch": request.batch,
        "prompt": {"context": request.context, "fixed": request.fixed, "new": request.new},
        "memory": held,
        "work": {name: _work_of(answer) for name, answer in answers.items()},
        "break_even_flops": {
            f"{KEEP} {rate:g}": break_even(request.setting(rate), lambda work: work.flops, request.longest)
            for rate in request.keep_rates
        },
        "training": trained,
        "devices": [_on(device, request, answers, held, trained) for device in devices],
    }


def _answers(request: Request) -> dict[str, Answer]:
    """By name: the whole prompt, and at each rate the prompt pruned before it is read, or the cache after it."""
    out = {"whole": whole(request.setting(1.0), request.context)}
    for name, answer in ((KEEP, pruned), (EVICT, evicted)):
        out |= {f"{name} {rate:g}": answer(request.setting(rate), request.context) for rate in request.keep_rates}
    return out


def _held(request: Request, answer: Answer) -> dict[str, int]:
    """Bytes in use: weights, cache, beside them in reading, scoring or decoding, and in all at the fullest moment.

    Decoding reads a second copy of the layers' weights and of the cache, laid out for it (`rcp.nn.step`); in 8 bits of
    the head too.
    """
    shape, batch, stored = request.shape, request.batch, request.stored
    weights = parameter_bytes(shape, stored)
    cache, full = (cache_bytes(shape, n, batch=batch, stored=stored) for n in (answer.slots, answer.read_slots))
    reading = reading_bytes(shape, answer.tokens, answer.read_slots, batch=batch, stored=stored)
    head = 0 if stored.int8_weights else shape.d_model * shape.vocab_size * stored.params  # not copied as it is
    decoding = decoded_by(shape, stored) - head + cache if answer.new else 0
    scoring = 0
    if answer.score.flops:
        weights += scorer_parameters(shape, request.config.scorer) * FLOAT32
        if request.config.scorer.kind != "standalone":
            scoring = reading_bytes(shape, request.context + request.fixed, 0, batch=batch, stored=stored)
    return {
        "tokens_read": answer.tokens,
        "weights": weights,
        "cache": cache,
        "reading": reading,
        "scoring": scoring,
        "decoding": decoding,
        "total": weights + max(full + reading, scoring, cache + decoding),
    }


def _work_of(answer: Answer) -> dict[str, dict[str, float]]:
    parts = {"score": answer.score, "read": answer.read, "token": answer.step}
    parts["total"] = answer.score + answer.read + answer.decode
    return {name: {"flops": work.flops, "bytes": work.bytes} for name, work in parts.items()}


def _training(request: Request) -> dict[str, Any]:
    """A step that trains the whole model, and one that trains the scorer by draws that the frozen model judges."""
    shape, config = request.shape, request.config
    batch, answer = config.data.batch_size, config.data.max_answer
    tokens = request.context + request.fixed + answer
    stored = Stored(FLOAT32, SIZES[config.model.dtype])
    remat, accumulate = config.model.remat, config.optim.accumulate
    held = training(shape, tokens, batch=batch, answer=answer, accumulate=accumulate, remat=remat, stored=stored)
    work = train_step(shape, tokens, batch=batch, answer=answer, remat=remat, stored=stored)
    count = scorer_parameters(shape, config.scorer)
    return {
        "batch": batch,
        "tokens": tokens,
        "model": {**asdict(held), "total": held.total, "flops": work.flops, "bytes": work.bytes},
        "pruner": {
            "draws": config.policy.samples,
            "weights": parameter_bytes(shape, request.stored) + count * FLOAT32,
            "gradients": count * FLOAT32,
            "optimizer": optimizer_bytes(count, accumulate=accumulate),
            **{name: getattr(pruner_step(request), name) for name in ("flops", "bytes")},
        },
    }


def pruner_step(request: Request) -> Work:
    """`policy.samples` drawn prompts read with their answers, at the mean keep rate; the scorer before and in updates.

    What only some objectives need is not in it: keep-labels, a relaxed mask, the full context's distribution.
    """
    shape, config, stored = request.shape, request.config, request.stored
    batch, answer = config.data.batch_size, config.data.max_answer
    tokens = request.context + request.fixed
    scored = {"batch": batch}
    once = network(shape, config.scorer, tokens + answer, request.segments, **scored)
    work = features(shape, config.scorer, tokens + answer, request.segments, stored=stored, **scored)
    work = work + once * (1 + 3 * config.policy.updates)
    for rate in request.keep_rates:
        kept = request.setting(rate).kept(request.context) + request.fixed + answer
        reading = forward(shape, kept, batch=batch, logits=answer, stored=stored)
        work = work + reading * (config.policy.samples / len(request.keep_rates))
    return work


def _on(
    device: Device, request: Request, answers: dict[str, Answer], held: dict[str, Any], trained: dict[str, Any]
) -> dict[str, Any]:
    dtype = request.config.model.dtype

    def seconds(work: Work) -> float | None:
        return device.seconds(work, dtype)

    times: dict[str, Any] = {}
    for name, answer in answers.items():
        parts = {"score": seconds(answer.score), "read": seconds(answer.read), "token": seconds(answer.step)}
        known = dtype in device.peak
        total = answer.total(lambda work: seconds(work) or 0.0) if known else None
        times[name] = parts | {"total": total, "read_bound": device.bound(answer.read, dtype)}
    even: dict[str, int | None] = {}
    if dtype in device.peak:
        for rate in request.keep_rates:
            even[f"{KEEP} {rate:g}"] = break_even(
                request.setting(rate), lambda work: seconds(work) or 0.0, request.longest
            )
    step = Work(trained["model"]["flops"], 0, trained["model"]["bytes"])
    return {
        "name": device.name,
        "memory": device.memory,
        "bandwidth": device.bandwidth,
        "peak": device.peak.get(dtype),
        "source": device.source,
        "fits": {name: device.holds(parts["total"]) for name, parts in held.items()}
        | {"training": device.holds(trained["model"]["total"])},
        "seconds": times | {"train_step": seconds(step)},
        "break_even": even,
    }
