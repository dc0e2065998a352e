"""The table that inspect prints."""

import os

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from conversion.checkpoint.inspection import Inspection, RowBits, inspect
from conversion.commands.inspect import bits_table, inspection_table
from tests.support.tiny_converted import save_tiny_converted
from vllm_mha2mla.errors import CheckpointError


def printed(**changes):
    values = {
        "source": "llama", "source_fingerprint": "0" * 64, "model_type": "llama_mla",
        "method": "calibrated", "dtype": "bfloat16", "layers": 2, "kept_layers": [],
        "kv_lora_rank": [57, 60],
        "qk_rope_head_dim": [40, 40], "q_lora_rank": None, "cache_bytes_per_token": 394,
        "gpu_cache_bytes_per_token": 416, "baseline_bytes_per_token": 1536,
        "cache_fraction": 394 / 1536, "recipe": {}, "versions": {}, "figures": {},
        "healed_tokens": 0,
    }  # fmt: skip
    console = Console(width=200)
    with console.capture() as capture:
        console.print(inspection_table(Inspection(**values | changes)))
    return capture.get()


def test_says_what_padding_costs_on_gpus():
    assert "416 bytes per token: rows are padded, which costs 5.58%" in printed()


def test_says_nothing_where_nothing_is_padded():
    assert "GPU" not in printed(gpu_cache_bytes_per_token=394)


def test_says_how_many_columns_have_which_bits():
    layers = [
        RowBits(latent={4: 16, 1: 8}, rotary={4: 16}, bytes=19),
        RowBits(latent={8: 8, 4: 24}, rotary={}, bytes=22),
    ]
    text = printed(row_bits=layers, cache_bytes_per_token=41)
    assert "columns by bits" in text
    assert "8 of 8, 56 of 4, 8 of 1, 4.11 bits on average" in text
    assert "41 bytes per token in coded rows, 25.65% of the original's 1,536" in text
    console = Console(width=200)
    with console.capture() as capture:
        console.print(bits_table(layers))
    rows = [line.split() for line in capture.get().splitlines()[1:]]
    assert rows[0] == ["0", "19", "16", "of", "4,", "8", "of", "1", "16", "of", "4"]


def test_names_with_brackets_are_no_markup():
    assert "my [bold] model" in printed(source="my [bold] model")


def test_refuses_rounded_frequencies(tmp_path):
    file = save_tiny_converted(tmp_path) / "model.safetensors"
    tensors = {name: x.to(torch.bfloat16) for name, x in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="rope_inv_freq is stored in BF16: rounded"):
        inspect(tmp_path)


def test_damaged_weights_are_one_line(tmp_path):
    file = save_tiny_converted(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        inspect(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this system's folders")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    file = save_tiny_converted(tmp_path) / "model.safetensors"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="not a file"):
        inspect(tmp_path)


def test_layers_that_keep_their_attention_are_told_and_not_averaged():
    text = printed(layers=3, kept_layers=[1], kv_lora_rank=[40, 0, 60], qk_rope_head_dim=[8, 0, 8])
    assert "3, of which 1 keep their attention over a window" in text
    assert "40 to 60, 50.0 on average" in text
