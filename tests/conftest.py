"""Eight host devices for every test; a silent broadcast between ranks is an error.

Programs are compiled without LLVM's costly passes and without XLA's newer way of writing fused kernels, here and in the
processes that tests start: the first takes tests/train/test_build.py from 167 to 96 CPU seconds, the second
tests/train/test_judge_step.py from 20 to 10, and what XLA says of memory and work stays as tests/cost has it.
To test what users run: JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= make test.

`@pytest.mark.lax` allows such broadcasts (for code that leans on a library's), `@pytest.mark.strict_dtype` also forbids
implicit promotion between dtypes (not the default: optax's own Adam multiplies float by int). Programs that several
tests compile are compiled once, also where the tests are shared out over processes. No test of hypothesis has a
deadline: what is slow is a compile.
"""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

MAPS = 20_000
# Both are read by the processes that tests start too.
UNOPTIMISED = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
COMPILED = os.environ.get("RCP_TESTS_COMPILED", "")
if not COMPILED:  # the process that starts the others, or the only one
    COMPILED = os.environ["RCP_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="rcp-tests-xla-")
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)

hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", UNOPTIMISED not in ("0", "false"))
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lax: allow implicit rank promotion")
    config.addinivalue_line("markers", "strict_dtype: forbid implicit dtype promotion")


@pytest.fixture(autouse=True, scope="module")
def bounded_maps() -> Iterator[None]:
    """Drops compiled programs between modules once they hold many memory maps, of which Linux gives a process 65,530.

    XLA maps memory for every program on CPU and crashes where it gets none; a program that is needed again comes from
    the compile cache.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def strict_numerics(request: pytest.FixtureRequest) -> Iterator[None]:
    rank = "allow" if request.node.get_closest_marker("lax") else "raise"
    dtype = "strict" if request.node.get_closest_marker("strict_dtype") else "standard"
    with jax.numpy_rank_promotion(rank), jax.numpy_dtype_promotion(dtype):
        yield
