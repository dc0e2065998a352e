"""Sources that are something else than a plain model: one line that says what, and the way out."""

import json
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from conversion.errors import SourceError
from conversion.source import open_source
from tests.support.tiny import save_tiny
from tests.support.tiny_converted import save_tiny_converted


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model")


def refused(folder):
    with pytest.raises(SourceError) as error:
        open_source(str(folder)).tokenizer()
    line = str(error.value)
    assert line.startswith(f"{folder}: ")
    assert "\n" not in line
    return line


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_weights(folder, old, new):
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantised_model(folder, method):
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    rename_weights(folder, "up_proj.weight", "up_proj.qweight")
    line = refused(folder)
    assert f"{method.upper()}-quantised; convert from the unquantised model" in line


def test_quantised_weights_that_the_config_does_not_mention(folder):
    rename_weights(folder, "up_proj.weight", "up_proj.qweight")
    line = refused(folder)
    assert "up_proj.qweight" in line
    assert "neither quantised" in line


def test_a_converted_model(tmp_path):
    folder = save_tiny_converted(tmp_path / "converted")
    change_config(folder, mha2mla={"format_version": 1, "source": {"name": "tiny"}})
    line = refused(folder)
    assert "converted already" in line
    assert "convert tiny again" in line
    assert "mha2mla heal" in line
    assert "vllm serve" in line


def test_an_adapter(folder):
    (folder / "config.json").unlink()
    adapter = {"base_model_name_or_path": "some-org/base", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    line = refused(folder)
    assert "an adapter of some-org/base" in line
    assert "merge_and_unload" in line


def test_an_adapter_beside_a_model(folder):
    adapter = {"base_model_name_or_path": "some-org/base", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    line = refused(folder)
    assert "a model with an adapter beside it of some-org/base" in line
    assert "move adapter_config.json away, or merge it" in line


@pytest.mark.parametrize("place", ["model", "it's my [bold] $model"])
def test_torch_weights_become_safetensors_by_the_command_of_the_message(tmp_path, place):
    folder = save_tiny(tmp_path / place)
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    line = refused(folder)
    assert "only PyTorch .bin weights" in line
    command = shlex.split(line[line.index("python -c") :])
    subprocess.run([sys.executable, *command[1:]], cwd=folder.parent, check=True, timeout=300)
    source = open_source(str(folder.parent / f"{place}-safetensors"))
    for name, tensor in tensors.items():
        assert torch.equal(source.tensor(name), tensor)
    assert source.tokenizer().get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert "only safetensors weights are read" in refused(folder)


def test_a_gguf_file_beside_a_config(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert f"give the GGUF file itself: {folder / 'model.gguf'}" in refused(folder)


def test_no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    line = refused(folder)
    assert "no tokenizer; copy tokenizer.json and tokenizer_config.json" in line
    assert str(folder) in line


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", '{"model": {}}'),
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"bos_token": 3}'),
    ],
)
def test_a_damaged_tokenizer(folder, file, text):
    (folder / file).write_text(text)
    assert "no usable tokenizer" in refused(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_folder_is_never_run(folder, file, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    marker = folder / "was run"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    content = json.loads((folder / file).read_text())
    names = {"AutoConfig": "evil.X", "AutoTokenizer": ["evil.X", None]}
    content |= {"auto_map": names, "model_type": "evil", "tokenizer_class": "Evil"}
    (folder / file).write_text(json.dumps(content))
    refused(folder)
    assert not marker.exists()


def test_a_folder_of_gguf_files(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert f"give the GGUF file itself: {tmp_path / 'model.gguf'}" in refused(tmp_path)
