"""Devices by name, and the roofline: a piece of work takes as long as its operations or its bytes, whichever is more.

Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures", CACM
2009. The time is a lower bound: peaks are never reached, and phases are taken to overlap perfectly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rcp.cost.work import Work
from rcp.types import UserError

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Device:
    """One chip, as published.

    Attributes:
      memory: bytes. bandwidth: of that memory, bytes a second.
      peak: FLOPs a second by compute dtype, dense (without sparsity); float32 outside the tensor cores. A dtype that is
        not there has no published number.
      source: where the numbers were read.
    """

    name: str
    memory: float
    bandwidth: float
    peak: dict[str, float] = field(hash=False)
    source: str

    def seconds(self, work: Work, dtype: str) -> float | None:
        """max(FLOPs / peak, bytes / bandwidth); None where no peak is known for the dtype."""
        if dtype not in self.peak:
            return None
        return max(work.flops / self.peak[dtype], work.bytes / self.bandwidth)

    def bound(self, work: Work, dtype: str) -> str | None:
        """What decides that time: "compute" or "memory"."""
        if dtype not in self.peak:
            return None
        return "compute" if work.flops / self.peak[dtype] >= work.bytes / self.bandwidth else "memory"

    def holds(self, needed: float) -> bool:
        return needed <= self.memory


def _device(name: str, gigabytes: float, gigabytes_a_second: float, teraflops: dict[str, float], source: str) -> Device:
    peak = {dtype: value * TERA for dtype, value in teraflops.items()}
    return Device(name, gigabytes * GIGA, gigabytes_a_second * GIGA, peak, source)


_HOPPER = "https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html (tensor figures there with sparsity: halved)"
_AMPERE = "https://glennklockwood.com/garden/processors/A100 (from NVIDIA's data sheet and white paper)"
DEVICES = {
    device.name: device
    for device in (
        _device("a100-40gb", 40, 1555, {"float32": 19.5, "bfloat16": 312}, _AMPERE),
        _device("a100-80gb", 80, 2039, {"float32": 19.5, "bfloat16": 312}, _AMPERE),
        _device("h100-pcie", 80, 2000, {"float32": 51, "bfloat16": 756.5}, _HOPPER),
        _device("h100-sxm", 80, 3350, {"float32": 67, "bfloat16": 989.5}, _HOPPER),
        _device("tpu-v5e", 16, 819, {"bfloat16": 197}, "https://docs.cloud.google.com/tpu/docs/v5e"),
        _device("tpu-v5p", 95, 2765, {"bfloat16": 459}, "https://cloud.google.com/tpu/docs/v5p"),
        _device("tpu-v6e", 32, 1638, {"bfloat16": 918}, "https://docs.cloud.google.com/tpu/docs/v6e.md.txt"),
    )
}
"""By name; of several chips on a board, one."""


def device_named(name: str) -> Device:
    """One of `DEVICES`. Raises UserError with the names there are."""
    if name not in DEVICES:
        raise UserError(
            f"no device {name!r} is known; known: {', '.join(DEVICES)}. Another one is given by --memory-gb, "
            "--bandwidth-gbs and --tflops"
        )
    return DEVICES[name]


def own_device(memory_gb: float, bandwidth_gbs: float, tflops: float, dtype: str) -> Device:
    """A device by the user's numbers: 1e9 bytes, 1e9 bytes a second, 1e12 FLOPs a second in the dtype asked about."""
    for flag, value in (("--memory-gb", memory_gb), ("--bandwidth-gbs", bandwidth_gbs), ("--tflops", tflops)):
        if not value > 0:
            raise UserError(f"{flag} is {value}: expected a number above 0")
    return _device("yours", memory_gb, bandwidth_gbs, {dtype: tflops}, "given by flags")
