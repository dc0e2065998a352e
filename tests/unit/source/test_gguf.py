"""GGUF files mean what llama.cpp computes: RoPE, biases, parts, and whatever nobody knows."""

import numpy as np
import pytest
import torch

from conversion.checkpoint.loading import source_model
from conversion.errors import SourceError
from conversion.source import open_source
from tests.support.gguf import VOCABULARY, gguf_tensors, llama3_freqs, logits, write_gguf
from tests.support.ropes import GGUF_YARN, llama3, yarn
from tests.support.tiny import tiny_llama

IDS = torch.randint(0, 256, (1, 300), generator=torch.Generator().manual_seed(1))


def model(**changes):
    return tiny_llama(vocab_size=VOCABULARY, **changes)


def written(tmp_path, original, metadata=None, more=None, **options):
    tensors = gguf_tensors(original) | (more or {})
    return write_gguf(tmp_path / "model.gguf", tensors, original.config, metadata, **options)


def same(path, original):
    """The file computes what the model does; weights are float32 in both."""
    source = open_source(str(path))
    torch.testing.assert_close(
        logits(source_model(source, torch.float32), IDS), logits(original, IDS), atol=1e-4, rtol=0
    )
    return source


def refused(path):
    with pytest.raises(SourceError) as error:
        open_source(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("rope", "metadata"),
    [
        ({"rope_type": "default", "rope_theta": 500.0}, {}),
        (
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 4.0},
        ),
        (
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            {"{arch}.rope.scaling.factor": 4.0},
        ),
        (
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            {"{arch}.rope.scale_linear": 4.0},
        ),
        (
            {"rope_type": "default", "rope_theta": 10000.0},
            {"{arch}.rope.scaling.type": "none", "{arch}.rope.scaling.factor": 4.0},
        ),
        (yarn(), GGUF_YARN),
        (
            yarn(beta_fast=16.0, beta_slow=2.0, attention_factor=1.25),
            GGUF_YARN
            | {
                "{arch}.rope.scaling.yarn_beta_fast": 16.0,
                "{arch}.rope.scaling.yarn_beta_slow": 2.0,
                # llama.cpp multiplies the usual factor, 0.1 ln 4 + 1, by this.
                "{arch}.rope.scaling.attn_factor": 1.25 / (0.1 * float(np.log(4.0)) + 1),
            },
        ),
    ],
    ids=["base", "linear", "no type", "old name", "none", "yarn", "yarn, all factors"],
)
def test_rope_scaling_of_the_metadata(tmp_path, rope, metadata):
    original = model(rope_parameters=rope)
    same(written(tmp_path, original, metadata), original)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 32.0},
        {"original_max_position_embeddings": 8192, "rope_theta": 500000.0},
        {"original_max_position_embeddings": 512, "high_freq_factor": 6.0},
        {"low_freq_factor": 2.0, "high_freq_factor": 8.0},
    ],
    ids=str,
)
def test_llama3_scaling_of_the_factors(tmp_path, changes):
    # Wide heads: several wavelengths within the smooth part.
    rope = llama3(original_max_position_embeddings=256) | changes
    original = model(rope_parameters=rope, head_dim=64)
    more = {"rope_freqs.weight": llama3_freqs(original.config)}
    same(written(tmp_path, original, more=more), original)


def test_factors_of_one_scale_nothing(tmp_path):
    original = model()
    more = {"rope_freqs.weight": np.ones(8, np.float32)}
    assert same(written(tmp_path, original, more=more), original).config.rope_parameters == {
        "rope_type": "default",
        "rope_theta": 10000.0,
    }


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"{arch}.rope.scaling.type": "longrope"}, "rope.scaling.type 'longrope'"),
        ({"{arch}.rope.scaling.attn_factor": 1.19}, "attn_factor 1.19"),
        ({"{arch}.rope.scaling.alpha": 50.0}, "llama.rope.scaling.alpha = 50.0 is not known"),
        (GGUF_YARN | {"{arch}.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor 0.5"),
        (GGUF_YARN | {"{arch}.rope.scaling.yarn_attn_factor": 2.0}, "yarn_attn_factor 2.0"),
        (GGUF_YARN | {"{arch}.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ({"{arch}.attention.scale": 0.5}, "llama.attention.scale = 0.5 is not known"),
        ({"{arch}.attention.sliding_window": 128}, "slides over a window of 128"),
        ({"{arch}.attention.causal": False}, "llama.attention.causal = False"),
        ({"{arch}.attention.value_length": 8}, "value_length differs"),
        ({"{arch}.attention.head_count_kv": [2, 1]}, "head_count_kv differs between layers"),
        ({"{arch}.rope.dimension_count": 8}, "rope.dimension_count 8"),
        ({"{arch}.expert_count": 8}, "blk.0.ffn_gate.weight has no counterpart"),
        ({"{arch}.new_in_2027": 3}, "llama.new_in_2027 = 3 is not known"),
        ({"{arch}.block_count": None}, "llama.block_count is missing"),
        ({"{arch}.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"{arch}.rope.freq_base": "x"}, "could not convert"),
        ({"general.type": "adapter"}, "of type 'adapter', not a whole model"),
        ({"split.count": 2}, "one of 2 parts"),
        ({"split.tensors.count": 99}, "hold 20 of 99 tensors"),
    ],
    ids=str,
)
def test_metadata_that_would_change_the_function_are_refused(tmp_path, metadata, message):
    assert message in refused(written(tmp_path, model(), metadata))


@pytest.mark.parametrize(
    "metadata",
    [
        {"{arch}.expert_count": 0, "{arch}.attention.causal": True},
        {"{arch}.attention.head_count_kv": [2, 2], "{arch}.feed_forward_length": [96, 96]},
        {"{arch}.attention.key_length": None, "{arch}.attention.value_length": None},
        {"{arch}.tensor_data_layout": "Meta AI original pth", "general.file_type": 0},
        {"general.quantized_by": "someone", "quantize.imatrix.file": "x"},
    ],
    ids=str,
)
def test_metadata_that_say_nothing_are_taken(tmp_path, metadata):
    original = model()
    same(written(tmp_path, original, metadata), original)


def test_factors_that_are_no_known_scaling(tmp_path):
    more = {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32) ** 2}
    assert "rope_freqs.weight is not Llama 3's scaling" in refused(
        written(tmp_path, model(), more=more)
    )
    more = {"rope_freqs.weight": np.full(8, 2, np.float32)}
    assert "rope_freqs.weight beside" in refused(written(tmp_path, model(), GGUF_YARN, more))


def test_biases(tmp_path):
    original = model(attention_bias=True, mlp_bias=True)
    same(written(tmp_path, original), original)


def test_biases_that_are_not_there_are_zero(tmp_path):
    original = model(attention_bias=True)
    tensors = gguf_tensors(original)
    for name in [n for n in tensors if n.endswith("attn_output.bias")]:
        del tensors[name]
    for layer in original.model.layers:
        layer.self_attn.o_proj.bias.data.zero_()
    same(write_gguf(tmp_path / "model.gguf", tensors, original.config), original)


def test_untied_heads_and_heads_wider_than_their_share(tmp_path):
    original = model(tie_word_embeddings=False, head_dim=32)
    source = same(written(tmp_path, original), original)
    assert source.config.head_dim == 32
    assert not source.config.tie_word_embeddings


@pytest.mark.parametrize("given", [1, 3])
def test_a_model_in_parts(tmp_path, given):
    original = model()
    first = written(tmp_path, original, split=3)
    part = first.with_name(f"model-0000{given}-of-00003.gguf")
    source = same(part, original)
    assert {info.shard for info in source.tensors.values()} == {
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    }
    assert source.tokenizer().convert_tokens_to_ids("<|im_end|>") == 257
    first.with_name("model-00002-of-00003.gguf").unlink()
    assert "part model-00002-of-00003.gguf is missing" in refused(part)


def test_a_tensor_without_a_counterpart(tmp_path):
    more = {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    assert "blk.0.attn_sinks.weight has no counterpart" in refused(
        written(tmp_path, model(), more=more)
    )


def test_an_architecture_of_nobody(tmp_path):
    path = written(tmp_path, model(), architecture="mamba")
    assert "GGUF architecture 'mamba' is not supported" in refused(path)


@pytest.mark.parametrize("damage", [b"\xff\xff", b""], ids=["no text", "cut"])
def test_a_damaged_file(tmp_path, damage):
    path = written(tmp_path, model(), {"general.name": "somebody"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"so", damage, 1) if damage else content[:-100])
    assert "model.gguf is truncated or not a GGUF file" in refused(path)
