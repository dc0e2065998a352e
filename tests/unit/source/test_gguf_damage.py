"""Damaged GGUF files: refused at once, whatever their counts say."""

import pytest

from conversion.errors import SourceError
from conversion.source import open_source
from tests.support.gguf import VOCABULARY, byte_vocabulary, gguf_tensors, write_gguf
from tests.support.tiny import tiny_llama


def written(path, metadata=None):
    model = tiny_llama(vocab_size=VOCABULARY)
    return write_gguf(path, gguf_tensors(model), model.config, metadata)


def refused(path):
    with pytest.raises(SourceError) as error:
        open_source(str(path)).tokenizer()
    assert str(error.value).isprintable()
    return str(error.value)


def with_list(path, of, count, depth=0):
    """Put a list in front of a file's metadata."""
    data = bytearray(path.read_bytes())
    entry = (6).to_bytes(8, "little") + b"a.list" + (9).to_bytes(4, "little")
    for _ in range(depth):
        entry += (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    entry += of.to_bytes(4, "little") + count.to_bytes(8, "little")
    data[16:24] = (int.from_bytes(data[16:24], "little") + 1).to_bytes(8, "little")
    data[24:24] = entry
    path.write_bytes(data)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("of", [0, 4, 8, 9])
def test_a_list_longer_than_the_file(tmp_path, of):
    path = written(tmp_path / "m.gguf")
    with_list(path, of, 1 << 40)
    assert "is truncated or not a GGUF file" in refused(path)


def test_lists_of_lists(tmp_path):
    path = written(tmp_path / "m.gguf")
    with_list(path, 4, 0, depth=5000)
    assert "a value of type 9" in refused(path)


@pytest.mark.parametrize("place", [8, 16])
def test_counts_beyond_the_file(tmp_path, place):
    path = written(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    data[place : place + 8] = (1 << 62).to_bytes(8, "little")
    path.write_bytes(data)
    assert "is truncated or not a GGUF file" in refused(path)


def test_a_tensor_over_another(tmp_path):
    path = written(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    # After the name: axes, two sizes, a type and the offset.
    at = data.index(b"blk.1.attn_q.weight") + len("blk.1.attn_q.weight") + 4 + 16 + 4
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    assert "blk.1.attn_q.weight is at 0 and not at" in refused(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.chat_template", 3),
        ("tokenizer.chat_template.tool_use", 3),
        ("tokenizer.ggml.eos_token_id", "x"),
        ("tokenizer.ggml.eos_token_id", 10**6),
        ("tokenizer.ggml.add_bos_token", 3),
        ("tokenizer.ggml.pre", 3),
        ("general.sampling.temp", "hot"),
        ("general.type", 3),
        ("split.count", "x"),
    ],
)
def test_a_value_of_another_type(tmp_path, key, value):
    path = written(tmp_path / "m.gguf", {key: value})
    assert f"{key} is '{value}'" in refused(path)


def test_a_token_that_is_there_twice(tmp_path):
    tokens, types, merges = byte_vocabulary()
    model = tiny_llama(vocab_size=VOCABULARY)
    vocabulary = ([*tokens[:-1], tokens[0]], types, merges)
    path = tmp_path / "m.gguf"
    write_gguf(path, gguf_tensors(model), model.config, vocabulary=vocabulary)
    assert "a token is there twice" in refused(path)
