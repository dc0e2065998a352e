"""The files beside the weights are carried over, weights and what is made anew are not."""

import json

import pytest
from transformers import AutoTokenizer, GenerationConfig

from conversion.errors import SourceError
from conversion.source import open_source
from tests.support.tiny import save_tiny, tiny_tokenizer

CARRIED = [
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "LICENSE",
    "Größe [2].txt",
]
LEFT = ["pytorch_model.bin", "pytorch_model.bin.index.json", "README.md", ".gitattributes"]


def test_every_file_that_belongs_to_the_model(tmp_path):
    folder = save_tiny(tmp_path / "source")
    for name in CARRIED + LEFT:
        (folder / name).write_bytes(f"{name}\r\n".encode())
    out = tmp_path / "out"
    out.mkdir()
    open_source(str(folder)).write_assets(out)
    for name in CARRIED:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not any((out / name).exists() for name in LEFT)


def test_every_chat_template(tmp_path):
    folder = save_tiny(tmp_path / "source")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "plain", "tool_use": "tools"}
    tokenizer.save_pretrained(folder)
    out = tmp_path / "out"
    out.mkdir()
    open_source(str(folder)).write_assets(out)
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template


def test_several_end_tokens(tmp_path):
    folder = save_tiny(tmp_path / "source")
    GenerationConfig(eos_token_id=[3, 5, 7]).save_pretrained(folder)
    out = tmp_path / "out"
    out.mkdir()
    open_source(str(folder)).write_assets(out)
    assert GenerationConfig.from_pretrained(out).eos_token_id == [3, 5, 7]


def test_sampling_that_is_in_the_config(tmp_path):
    folder = save_tiny(tmp_path / "source")
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    sampling = {"temperature": 0.5, "do_sample": True, "top_k": 7, "eos_token_id": [3, 5]}
    path.write_text(json.dumps(json.loads(path.read_text()) | sampling))
    out = tmp_path / "out"
    out.mkdir()
    open_source(str(folder)).write_assets(out)
    found = GenerationConfig.from_pretrained(out)
    assert {key: getattr(found, key) for key in sampling} == sampling


@pytest.mark.parametrize("place", ["my model", "[bold]x[/bold]", "Größe", "it's", 'a "b" $c'])
def test_names_of_every_kind(tmp_path, place):
    folder = save_tiny(tmp_path / place)
    assert len(open_source(str(folder)).tokenizer()) == 256
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError) as error:
        open_source(str(folder))
    assert str(error.value).startswith(f"{folder}: ")
