"""rcp.data works without jax being imported."""

import subprocess
import sys


def test_data_does_not_import_jax():
    code = (
        "import sys; from rcp.data.tasks import TASKS; from rcp.data import pack, pipeline, sources;"
        "[TASKS[n]().examples('test', 1)[0] for n in ('facts', 'chain')];"
        "sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'tensorflow', 'tensorflow_datasets', 'grain')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
