import pytest
import torch
from safetensors.torch import load_file

from conversion.checkpoint.shards import ShardWriter
from conversion.errors import OutputError


def test_safetensors_reads_what_was_streamed(tmp_path):
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(2, 2).bfloat16(),
        "empty": torch.zeros(0),
        "view": torch.randn(4, 6).T,
    }
    writer = ShardWriter(tmp_path / "x.safetensors", max_tensors=len(tensors))
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)


def test_a_tensor_is_written_once(tmp_path):
    writer = ShardWriter(tmp_path / "x.safetensors", max_tensors=2)
    writer.write("a", torch.zeros(1))
    with pytest.raises(ValueError, match="twice"):
        writer.write("a", torch.zeros(1))


def test_numbers_too_large_for_float16_are_refused(tmp_path):
    writer = ShardWriter(tmp_path / "x.safetensors", max_tensors=2)
    fits = torch.tensor([65504.0, torch.inf])
    writer.write_pieces("fits", (fits,), (2,), torch.float16)
    with pytest.raises(OutputError, match="large: has numbers too large for float16"):
        writer.write_pieces("large", (torch.tensor([1e5]),), (1,), torch.float16)
