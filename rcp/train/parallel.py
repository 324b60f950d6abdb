"""Maps a pure training step over the devices of one or several processes. The only file that knows devices.

Two modes with the same numbers:

* "pmap": `jax.pmap` over a leading device axis. State and frozen values carry one copy a device, the batch is cut into
  [devices, batch / devices, ...], and the step reduces over the axis "data".
* "mesh": `jax.jit` over a named mesh. The batch is sharded over "data"; the state is replicated or, with
  `shard_params`, its large arrays are split (their longest divisible axis). The compiler inserts the reductions, so
  the step sees no axis.

With several processes each places its own rows of the batch and the same state, on the devices it has; a mesh spans
all devices, and under pmap a process sees its own, while reductions go over all.

The state is donated in both. Nothing here waits for the device, except on several *host* devices (below).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rcp.config import ParallelConfig
from rcp.train.state import Metrics, Step, TrainState
from rcp.types import UserError

AXIS = "data"
SHARD_FROM = 2**16  # elements; smaller arrays are replicated in mesh mode with shard_params
B = TypeVar("B")
MappedStep = Callable[[TrainState, PyTree, Any], tuple[TrainState, Metrics]]


def use_compile_cache() -> Path | None:
    """Keeps compiled programs from run to run in $RCP_CACHE_DIR/xla, by default ~/.cache/rcp/xla.

    JAX_COMPILATION_CACHE_DIR, where set, stands. Returns the folder, or None where it cannot be made.
    """
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if chosen:
        return Path(chosen)
    folder = Path(os.environ.get("RCP_CACHE_DIR") or Path.home() / ".cache" / "rcp") / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def start_processes(config: ParallelConfig) -> None:
    """Joins the other processes of a run where the config names them; a second call does nothing.

    Must come before anything touches a device, and in every process.

    Raises:
      UserError: the cluster is not recognised (`parallel.distributed`), or a device was touched before.
    """
    if not (config.coordinator or config.distributed) or jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if config.coordinator:
            jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        key = "coordinator" if config.coordinator else "distributed"
        raise UserError(f"config.parallel.{key}: the processes of this run cannot be joined: {error}") from error


def this_process() -> tuple[int, int]:
    """(number of this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def describe_devices() -> list[tuple[str, str]]:
    """(name, description) of each device, for people to read."""
    return [(f"{device.platform} {device.id}", device.device_kind) for device in jax.devices()]


class Parallel:
    """Placement and mapping for one choice of mode and devices.

    Attributes:
      devices: the devices used, of all processes.
      process, processes: number of this process, and of how many.
      axis_name: "data" under pmap, None over a mesh.
    """

    def __init__(self, config: ParallelConfig | None = None):
        """Raises `UserError` where `parallel.devices` is more than there are, or part of several processes' devices."""
        config = config or ParallelConfig()
        found = jax.devices()
        count = config.devices or len(found)
        if count > len(found):
            raise UserError(
                f"config.parallel.devices is {count}, but this machine has {len(found)} ({found[0].platform})"
            )
        self.process, self.processes = this_process()
        if self.processes > 1 and count < len(found):
            raise UserError(f"config.parallel.devices is {count}: several processes use all {len(found)}, say 0")
        self.devices = found[:count]
        local = [device for device in self.devices if device.process_index == self.process]
        self.mode = config.mode
        self.shard_params = config.shard_params
        self.axis_name = AXIS if config.mode == "pmap" else None
        placed = local if config.mode == "pmap" else self.devices
        mesh = jax.make_mesh((len(placed),), (AXIS,), axis_types=(AxisType.Auto,), devices=placed)
        self._local = len(local)
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._same = NamedSharding(mesh, PartitionSpec())
        self._gather = jax.jit(lambda tree: tree, out_shardings=self._same)  # one, which is compiled once
        # Host devices share one thread pool: two programs with collectives in flight at once can each hold threads that
        # the other's collective waits for, for ever. Real devices have queues of their own.
        self._one_at_a_time = count > 1 and found[0].platform == "cpu"

    def place_state(self, tree: B) -> B:
        """A state on the devices, in memory of its own: the step may donate it and the arrays given stay valid."""
        placed = self.place_frozen(tree)
        # A CPU device may have adopted the numpy array it was given, and donation would overwrite that: copy.
        shardings = jax.tree.map(lambda x: x.sharding, placed)
        return jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=shardings)(placed)

    def place_frozen(self, tree: B) -> B:
        """Values that no step changes on the devices; on CPU they may share the memory of the arrays given."""
        if self.mode == "pmap":
            return jax.tree.map(self._stack, tree)
        return jax.tree.map(self._whole, tree)

    def place_batch(self, batch: B) -> B:
        """Starts the copy of a batch of numpy arrays [batch, ...] to the devices and returns at once.

        With several processes the arrays are this one's rows.

        Raises:
          UserError: the batch size is no multiple of the number of devices.
        """
        count = self._local

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            if x.shape[0] % count:
                raise UserError(
                    f"a batch of {x.shape[0]} cannot be split over {count} devices: make config.data.batch_size (or "
                    f"that of reader or eviction) a multiple of {count} or set config.parallel.devices"
                )
            if self.mode == "pmap":
                return jax.device_put(x.reshape(count, x.shape[0] // count, *x.shape[1:]), self._split)
            return jax.make_array_from_process_local_data(self._split, x)

        return jax.tree.map(put, batch)

    def compile(self, step: Step) -> MappedStep:
        """The step over the devices, on placed values; it donates the state."""

        def local(state: TrainState, frozen: PyTree, batch: Any) -> tuple[TrainState, Metrics]:
            return step(state, frozen, batch, axis_name=self.axis_name)

        if self.mode == "pmap":
            mapped = jax.pmap(local, axis_name=AXIS, devices=self.devices, donate_argnums=0)
        else:
            mapped = self._jit(local)

        def run(state: TrainState, frozen: PyTree, batch: Any) -> tuple[TrainState, Metrics]:
            result = mapped(state, frozen, batch)
            return jax.block_until_ready(result) if self._one_at_a_time else result

        return run

    def _jit(self, local: MappedStep) -> MappedStep:
        compiled: list[MappedStep] = []

        def call(state: TrainState, frozen: PyTree, batch: Any) -> tuple[TrainState, Metrics]:
            if not compiled:  # the state's own placement is its placement for ever
                out = (jax.tree.map(lambda x: x.sharding, state), self._same)
                compiled.append(jax.jit(local, donate_argnums=0, out_shardings=out))
            return compiled[0](state, frozen, batch)

        return call

    def fetch(self, tree: PyTree) -> PyTree:
        """Numpy copies of placed values, one device's copy of each. Waits for them.

        Copies, never views: on CPU a view would alias memory that the next step is about to overwrite.
        """
        if self.mode == "pmap":
            tree = jax.tree.map(lambda x: x.addressable_data(0), tree)
        elif self.processes > 1 and self.shard_params:
            tree = self._gather(tree)
        for leaf in jax.tree.leaves(tree):
            leaf.copy_to_host_async()
        drop = (lambda x: np.array(x[0])) if self.mode == "pmap" else np.array
        return jax.tree.map(lambda x: drop(np.asarray(x)), tree)

    def _stack(self, x: Any) -> jax.Array:
        """[devices, ...] with one copy a device, without making the copies on the host."""
        x = np.asarray(x)
        return jax.make_array_from_callback((self._local, *x.shape), self._split, lambda index: x[None])

    def _whole(self, x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, self._sharding(x), lambda index: x[index])

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in some process; all of them must call it, at the same step."""
        if self.processes == 1:
            return flag
        return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))

    def wait(self, name: str) -> None:
        """Until all processes have come here."""
        if self.processes > 1:
            multihost_utils.sync_global_devices(name)

    def _sharding(self, x: Any) -> NamedSharding:
        if not self.shard_params or np.size(x) < SHARD_FROM:
            return self._same
        axes = [axis for axis, size in enumerate(np.shape(x)) if size % len(self.devices) == 0]
        if not axes:
            return self._same
        longest = max(axes, key=lambda axis: np.shape(x)[axis])
        return NamedSharding(self._same.mesh, PartitionSpec(*[None] * longest, AXIS))
