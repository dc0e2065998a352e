"""A GGUF file's tokenizer, chat templates, end tokens and sampling."""

import json

import pytest
from transformers import AutoTokenizer, GenerationConfig

from conversion.source import open_source
from tests.support.gguf import VOCABULARY, gguf_tensors, write_gguf
from tests.support.tiny import tiny_llama

IM_END, EOT, EOM, BOS = range(257, 261)


@pytest.fixture
def assets(tmp_path):
    """The folder that a file's assets are written to."""

    def write(**metadata):
        original = tiny_llama(vocab_size=VOCABULARY)
        metadata = {f"tokenizer.{key}": value for key, value in metadata.items()}
        sampling = {k.removeprefix("tokenizer."): v for k, v in metadata.items() if "sampling" in k}
        path = write_gguf(
            tmp_path / "model.gguf",
            gguf_tensors(original),
            original.config,
            {k: v for k, v in metadata.items() if "sampling" not in k} | sampling,
        )
        source = open_source(str(path))
        folder = tmp_path / "assets"
        folder.mkdir()
        source.write_assets(folder)
        return source, folder

    return write


def test_every_end_token(assets):
    source, folder = assets(
        **{"ggml.eos_token_id": EOM, "ggml.eot_token_id": EOT, "ggml.eom_token_id": EOM}
    )
    # By its spelling llama.cpp takes <|im_end|> for an end, too.
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [EOM, EOT, IM_END]
    assert source.config.eos_token_id == [EOM, EOT, IM_END]
    assert source.tokenizer().eos_token_id == EOM


def test_one_end_token(assets):
    _, folder = assets(**{"ggml.eos_token_id": IM_END, "ggml.bos_token_id": BOS})
    found = json.loads((folder / "generation_config.json").read_text())
    assert (found["eos_token_id"], found["bos_token_id"]) == (IM_END, BOS)


def test_the_sampling_that_the_file_recommends(assets):
    _, folder = assets(**{"general.sampling.temp": 0.5, "general.sampling.top_k": 7})
    found = GenerationConfig.from_pretrained(folder)
    assert (found.do_sample, found.temperature, found.top_k) == (True, 0.5, 7)


def test_every_chat_template(assets):
    templates = {"chat_template": "plain", "chat_template.tool_use": "tools"}
    _, folder = assets(**templates)
    assert AutoTokenizer.from_pretrained(folder).chat_template == {
        "default": "plain",
        "tool_use": "tools",
    }
