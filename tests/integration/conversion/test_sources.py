"""Sources of every format, from their file to a converted checkpoint that computes the same."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from conversion.checkpoint.export import export
from conversion.runtime.progress import Progress
from conversion.source import open_source
from tests.support.convert import convert_tiny, windows
from tests.support.gguf import VOCABULARY, gguf_tensors, logits, write_gguf
from tests.support.ropes import GGUF_YARN, yarn
from tests.support.tiny import TEXT, save_tiny, tiny_llama

# Of test_conversion.py: factors are multiplied in another order.
TOLERANCE = 2e-3


def same(one, two):
    torch.testing.assert_close(
        logits(one, windows()), logits(two, windows()), atol=TOLERANCE, rtol=0
    )


def test_a_gguf_file_in_parts_with_biases_and_scaled_rope(tmp_path):
    original = tiny_llama(vocab_size=VOCABULARY, attention_bias=True, rope_parameters=yarn())
    path = write_gguf(
        tmp_path / "model.gguf",
        gguf_tensors(original),
        original.config,
        GGUF_YARN | {"tokenizer.ggml.eos_token_id": 257, "tokenizer.ggml.eot_token_id": 258},
        split=2,
    )
    out = tmp_path / "out"
    same(convert_tiny(path, out, cache_fraction=1), original)
    assert GenerationConfig.from_pretrained(out).eos_token_id == [257, 258]
    assert len(list(out.glob("model-*-of-00002.safetensors"))) == 2


@pytest.fixture
def fp8(tmp_path):
    """A folder whose matrices are fp8 in blocks, scales in another file than their matrices."""
    folder = save_tiny(tmp_path / "fp8")
    values, scales = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        values[name] = tensor
        if "proj" in name:
            values[name] = (tensor * 100).to(torch.float8_e4m3fn)
            scales[f"{name}_scale_inv"] = torch.full([-(-n // 32) for n in tensor.shape], 0.01)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, tensors in enumerate((values, scales), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_quantised_folder(tmp_path, fp8):
    source = open_source(str(fp8))
    export(source, tmp_path / "plain", torch.float32, False, Progress())
    plain = json.loads((tmp_path / "plain/config.json").read_text())
    assert "quantization_config" not in plain
    dequantised = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    same(convert_tiny(fp8, tmp_path / "out", cache_fraction=1), dequantised.eval())


def test_names_of_every_kind(tmp_path, mha2mla):
    source = save_tiny(tmp_path / "my [bold] Modell, größer")
    (tmp_path / "text [1].txt").write_text(TEXT)
    out = tmp_path / "out [red]x[/red]"
    done = mha2mla("convert", source, out, "--calibration", tmp_path / "text [1].txt")
    assert done.returncode == 0, done.stderr
    assert str(source) in done.stdout
    assert str(source) in mha2mla("inspect", out).stdout
    again = mha2mla("convert", source, out, "--calibration", tmp_path / "text [1].txt")
    assert str(out) in again.stderr
