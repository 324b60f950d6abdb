"""Packaging: what RCP needs to run, and the extras. Tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "rcp" / "__init__.py").read_text(encoding="utf-8"))[1]  # type: ignore[index]

# Ranges that are known to work together; constraints/*.txt pins the exact versions that were tested.
REQUIRES = [
    "jax>=0.10.2,<0.14",
    "flax>=0.12.8,<0.14",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array-record>=0.8.6",
    "tensorflow-datasets>=4.9.10",
    "importlib-resources>=6.0",  # tensorflow-datasets imports it without declaring it
    "ml-collections>=1.1.0",
    "jaxtyping>=0.3.2",
    "tokenizers>=0.22",
    "safetensors>=0.6",
    "gguf>=0.17",
    "huggingface-hub>=0.34",
    "jinja2>=3.1",
    "rank-bm25>=0.2.2",
    "math-verify>=0.8,<0.10",  # answers that are no plain numbers; timeouts can be switched off since 0.8
    "rich>=13.7",
    "matplotlib>=3.9",
    "tensorboardX>=2.6.2",
]

EXTRAS = {
    "gpu": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "torch": ["torch>=2.7", "transformers>=4.56", "accelerate"],  # the live parity comparison only
    "reasoning": ["reasoning-gym==0.1.25"],  # one of its dependencies needs a C compiler
    "notebooks": ["ipykernel>=6.29", "nbformat>=5.10", "nbclient>=0.10", "nbmake>=1.5", "jupyterlab>=4"],
}
EXTRAS["dev"] = [
    "ruff>=0.12",
    "pyright[nodejs]>=1.1.400",  # Node.js comes inside a wheel, so nothing else is fetched
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.130",
    "scipy>=1.14",  # reference distributions of the sampler's tests
    *(requirement for requirement in EXTRAS["notebooks"] if not requirement.startswith("jupyterlab")),
]

setup(
    name="rcp",
    version=VERSION,
    description="Reinforced context pruning: train a pruner that decides which of its context a language model reads",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["rcp", "rcp.*"]),
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["rcp=rcp.cli:main"]},
)
