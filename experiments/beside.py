"""What the scripts share that run another implementation beside ours: the same model, the same text, in turn.

The other one needs packages that do not go with ours, so it runs under a Python of its own (`--python`), as a child
process (experiments/foreign_*.py, which import nothing of rcp) that is asked for one prompt after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.prompts import long_prompts
from rcp.nn.pruner import Granularity, prune
from rcp.nn.transformer import Transformer
from rcp.policies import Policy
from rcp.policies.perplexity import self_information
from rcp.pretrained import Pretrained, PretrainedTokenizer, load
from rcp.pretrained.hf import NAMES
from rcp.pretrained.weights import MATRICES
from rcp.types import Batch, Example, Role, UserError


def write_model(folder: Path, model: Transformer, tokenizer: PretrainedTokenizer) -> None:
    """The model as `transformers` reads a Llama, in float32, with just our tokenizer; `rcp.pretrained` reads it too.

    Raises:
      UserError: a model that is not a plain Llama.
    """
    from safetensors.numpy import save_file

    c = model.config
    if c.qkv_bias or c.qk_norm or c.rope_scaling:
        raise UserError("only a plain Llama can be handed over: no biases, no norms of q and k, no rope scaling")
    layers = {name: np.asarray(value, np.float32) for name, value in model.layers.tree().items()}
    tensors = {NAMES[name].format(i=i): row for name, rows in layers.items() for i, row in enumerate(rows)}
    tensors |= {NAMES["embedding"]: model.embedding[...], NAMES["norm"]: model.norm[...]}
    if model.head is not None:
        tensors[NAMES["head"]] = model.head[...]
    matrices = {NAMES[name].format(i=i) for name in MATRICES for i in range(c.n_layers)}
    plain = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    plain = {name: np.ascontiguousarray(value.T if name in matrices else value) for name, value in plain.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.d_ff,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "max_position_embeddings": c.max_positions,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer.fast.save(str(folder / "tokenizer.json"))
    special = {name: tokenizer.fast.id_to_token(i) for name, i in (("eos_token", tokenizer.eos_id),)}
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(fast), encoding="utf-8")


class Foreign:
    """A child process under another Python that answers requests."""

    def __init__(self, python: str, script: str, install: str):
        self.install = install
        root, pipe = Path(__file__).parents[1], subprocess.PIPE
        command = [str(Path(python).absolute()), "-m", f"experiments.{script}"]
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root)
        except OSError as error:
            raise UserError(f"--python={python}: cannot be run ({error}): {install}") from error

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer. Raises UserError where the process has ended or says what went wrong."""
        assert self.process.stdin is not None and self.process.stdout is not None
        answer = ""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        found = json.loads(answer) if answer.startswith("{") else {"error": f"the process ended; {self.install}"}
        if "error" in found:
            self.process.kill()
            raise UserError(f"{found['error']}{'; ' + self.install if 'No module' in found['error'] else ''}")
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def arguments_of(description: str | None) -> argparse.Namespace:
    """The flags that these scripts share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment that has the other implementation")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1000, help="of a prompt")
    parser.add_argument("--keep-rate", type=float, default=0.5)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--output", type=Path, help="write the numbers of every prompt as JSON")
    return parser.parse_args()


def connected(python: str, script: str, install: str, pretrained: Pretrained) -> Foreign:
    """The other side with our model loaded, in float32. Raises UserError where it cannot."""
    other = Foreign(python, script, install)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), pretrained.model, pretrained.tokenizer)
        versions = other.ask(model=folder)
    print(f"the other side: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    return other


def both_sides(arguments: argparse.Namespace, script: str, install: str) -> tuple[Pretrained, list[Example], Foreign]:
    """Our model in float32, the prompts, and the other side with that model loaded."""
    pretrained = load(arguments.model)
    examples = long_prompts(pretrained.tokenizer, arguments.prompts, arguments.tokens)
    return pretrained, examples, connected(arguments.python, script, install, pretrained)


def kept_places(whole: Sequence[int], left: Sequence[int]) -> np.ndarray:
    """bool [whole]: which tokens of a text `left` of them are, found by aligning the two sequences."""
    kept = np.zeros(len(whole), bool)
    for block in SequenceMatcher(None, whole, left, autojunk=False).get_matching_blocks():
        kept[block.a : block.a + block.size] = True
    return kept


@partial(jax.jit, static_argnums=0)
def information(graph: Any, state: Any, batch: Batch) -> Any:
    """Self-information of every token, nats, by the reader of a policy."""
    return self_information(nnx.merge(graph, state), batch)


@partial(jax.jit, static_argnames="granularity")
def _keep(scores: Any, batch: Batch, budget: Any, *, granularity: Granularity) -> Any:
    return prune(scores, batch, budget, granularity=granularity).keep


def ours(policy: Policy, batch: Batch, budget: int, granularity: Granularity) -> tuple[np.ndarray, float]:
    """What our policy keeps of the context of one prompt, bool, and the seconds that it took, compilation excluded."""
    asked = jnp.asarray([budget], jnp.int32)

    def run() -> np.ndarray:
        scores = policy.scores(batch, key=jax.random.key(0), budget=asked)
        return np.asarray(_keep(scores, batch, asked, granularity=granularity))

    run()  # compiles
    start = time.perf_counter()
    keep = run()[0]
    return keep[np.asarray(batch.role[0]) == Role.CONTEXT], time.perf_counter() - start


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Share of what either keeps that both keep; 1 where neither keeps anything."""
    return float(np.sum(a & b) / max(np.sum(a | b), 1)) if np.any(a | b) else 1.0


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: the correlation of ranks, ties by place (scores here have none to speak of)."""
    ranks = np.stack([np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (a, b)])
    first, second = ranks - ranks.mean(axis=1, keepdims=True)
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def table(rows: Sequence[dict[str, float]], output: Path | None) -> None:
    """Prints the median of every number over the prompts with its extremes, and writes them all."""
    print("| | median | least | most |\n|---|---|---|---|")
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"| {name} | {statistics.median(values):.4g} | {min(values):.4g} | {max(values):.4g} |")
    if output:
        output.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
