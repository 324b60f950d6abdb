"""GGUF files written here, in every supported type and architecture, read back as models."""

from dataclasses import replace
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from rcp.nn.layers import RopeScaling, rope_frequencies
from rcp.nn.transformer import Transformer, TransformerConfig, parameter_shapes
from rcp.pretrained import gguf as ours
from rcp.pretrained import hf, load
from rcp.types import UserError

REFERENCES = Path(__file__).parent.parent / "references"
QUANTISED = {"Q4_K": 144, "Q6_K": 210}  # bytes a block of 256, of the types whose writer the package lacks
VOCABULARY = ["<|end|>", *sorted("abdehlorw"), "Ġ", "1", "2", "12", "he", "ll", "hell", "hello", "Ġw"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2"]


def write(path, config, tensors, *, arch="llama", kinds=None, extra=(), drop=()):
    """A GGUF file of `tensors` (by GGUF name, float32), quantised as `kinds` says."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] + [1] * (len(VOCABULARY) - 1))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    for name, value in [*tensors.items(), *extra]:
        if name in drop:
            continue
        kind = (kinds or {}).get(name, Kind.F32)
        if kind.name in QUANTISED:
            writer.add_tensor(name, value, raw_dtype=kind)  # raw blocks
        else:
            data = gguf.quants.quantize(value, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(config, seed=0):
    """GGUF names -> matrices as [outputs, inputs], for any architecture."""
    random = np.random.default_rng(seed)
    tensors = {}
    shapes = parameter_shapes(config)
    for name, shape in shapes.items():
        if name != "layers":
            tensors[ours.NAMES[name]] = random.normal(0, 0.3, shape[::-1] if name == "head" else shape)
    for name, shape in shapes["layers"].items():
        for i in range(config.n_layers):
            tensors[ours.NAMES[name].format(i=i)] = random.normal(0, 0.3, shape[:0:-1])
    return {name: value.astype(np.float32) for name, value in tensors.items()}


CONFIG = TransformerConfig(
    vocab_size=len(VOCABULARY), d_model=256, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=128, d_ff=256, norm_eps=1e-5
)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_every_type_is_dequantised_and_put_in_its_place(tmp_path, kind):
    tensors = random_tensors(CONFIG)
    matrices = [name for name in tensors if "norm" not in name]
    if kind in QUANTISED:
        random = np.random.default_rng(0)
        for name in matrices:
            blocks = random.integers(0, 60, (tensors[name].shape[0], QUANTISED[kind]), dtype=np.uint8)
            # Half-precision scales must be finite: give them small exponents.
            spans = (slice(0, 4),) if kind == "Q4_K" else (slice(208, 210),)
            for span in spans:
                blocks[:, span] = np.full((blocks.shape[0], (span.stop - span.start) // 2), 0.01, np.float16).view(
                    np.uint8
                )
            tensors[name] = blocks
    path = write(tmp_path / "m.gguf", CONFIG, tensors, kinds=dict.fromkeys(matrices, Kind[kind]))
    model = load(path).model

    def stored(name):
        value = tensors[name] if kind in QUANTISED else gguf.quants.quantize(tensors[name], Kind[kind])
        return gguf.quants.dequantize(value, Kind[kind]).reshape(-1, 256)

    np.testing.assert_array_equal(model.embedding[...], stored("token_embd.weight"))
    np.testing.assert_array_equal(model.layers.down[...][0], stored("blk.0.ffn_down.weight").T)
    np.testing.assert_array_equal(model.layers.o[...][0], stored("blk.0.attn_output.weight").T)
    # llama's q has its rows interleaved: pairs (i, i + half) stand side by side in the file.
    q = stored("blk.0.attn_q.weight").reshape(2, 64, 2, 256)
    expected = np.concatenate([q[:, :, 0], q[:, :, 1]], axis=1).reshape(256, 256)
    np.testing.assert_array_equal(model.layers.q[...][0], expected.T)
    assert np.isfinite(model(jnp.array([[1, 2, 3]]))).all()


@pytest.mark.parametrize("name", ["llama3-tied", "qwen2-tied", "qwen3-untied-sharded"])
def test_each_architecture_gives_the_reference_logits(tmp_path, name):
    """The tiny reference checkpoints, converted to GGUF as llama.cpp does it, still match transformers."""
    from safetensors.numpy import load_file

    folder = REFERENCES / name
    config = hf.read_model(folder, "float32").config
    tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    arch, converted, extra = name.split("-")[0].replace("llama3", "llama"), {}, []
    for ours_name, file_name in hf.NAMES.items():
        for i in range(config.n_layers):
            value = tensors.get(file_name.format(i=i))
            if value is None:
                continue
            if arch == "llama" and ours_name in "qk":
                heads = config.n_heads if ours_name == "q" else config.n_kv_heads
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            converted[ours.NAMES[ours_name].format(i=i)] = value
    if config.rope_scaling:
        # llama.cpp stores divisors; the reference differs from the published settings in the original length only.
        plain = np.asarray(rope_frequencies(config.head_dim, config.rope_theta))
        published = replace(config.rope_scaling, original_max_positions=8192)
        config = replace(config, rope_scaling=published)
        divisors = plain / np.asarray(rope_frequencies(config.head_dim, config.rope_theta, published))
        extra = [("rope_freqs.weight", divisors.astype(np.float32))]
    path = write(tmp_path / "m.gguf", config, converted, arch=arch, extra=extra)
    model = ours.read_model(ours.GGUF(path), "float32")
    assert model.config == replace(config, max_positions=model.config.max_positions)
    reference = np.load(folder / "reference.npz")
    ids = jnp.asarray(reference["ids"])
    if extra:  # other rotary settings than the reference: compare with the same weights under these settings
        whole = hf.read_model(folder, "float32")
        expected = Transformer(config, params=tree(whole))(ids)
    else:
        expected = reference["logits"]
    assert np.abs(np.asarray(jax.jit(model.__call__)(ids)) - expected).max() < 2e-3


def tree(model):
    return {"embedding": model.embedding[...], "layers": model.layers.tree(), "norm": model.norm[...]}


def test_tokenizer_and_scaling(tmp_path):
    path = write(tmp_path / "m.gguf", CONFIG, random_tensors(CONFIG))
    tokenizer = load(path).tokenizer
    ids = tokenizer.encode("hello w12<|end|>")
    assert [VOCABULARY[i] for i in ids] == ["hello", "Ġw", "1", "2", "<|end|>"]  # digits one by one, despite the merge
    assert tokenizer.decode(ids) == "hello w12<|end|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello w12"
    with pytest.raises(UserError, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    scaling = RopeScaling(factor=32.0)
    divisors = np.asarray(rope_frequencies(128, 10000.0) / rope_frequencies(128, 10000.0, scaling))
    path = write(tmp_path / "s.gguf", CONFIG, random_tensors(CONFIG), extra=[("rope_freqs.weight", divisors)])
    assert ours.read_config(ours.GGUF(path)).rope_scaling == scaling


def test_broken_files_name_file_and_tensor(tmp_path):
    tensors = random_tensors(CONFIG)
    cases = {
        r"m\.gguf: tensor 'blk\.0\.attn_v\.weight' is missing": {"drop": ["blk.0.attn_v.weight"]},
        r"m\.gguf: tensor 'extra\.weight' .* no place": {"extra": [("extra.weight", np.ones(4, np.float32))]},
        r"m\.gguf: architecture 'gemma3' is not supported; supported: llama": {"arch": "gemma3"},
        r"m\.gguf: tensor 'blk\.0\.ffn_up\.weight' is stored as Q5_0": {"kinds": {"blk.0.ffn_up.weight": Kind.Q5_0}},
        r"rope_freqs\.weight' is not Llama 3's": {"extra": [("rope_freqs.weight", np.arange(1, 65, dtype=np.float32))]},
    }
    for message, options in cases.items():
        path = write(tmp_path / "m.gguf", CONFIG, tensors, **options)
        with pytest.raises(UserError, match=message):
            load(path)
    path = write(tmp_path / "m.gguf", replace(CONFIG, d_ff=128), tensors)
    with pytest.raises(UserError, match=r"blk\.0\.ffn_gate\.weight' has shape \(256, 256\), .* says \(128, 256\)"):
        load(path)
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"cut\.gguf: not a readable GGUF file"):
        load(tmp_path / "cut.gguf")
