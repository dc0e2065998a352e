"""The models of the check: configurations, and random weights where a check reads them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import vllm_mha2mla  # noqa: F401  (teaches transformers the converted architecture)
from vllm_mha2mla.config import CONSTANTS, FORMAT_VERSION, ROPE_INV_FREQ

Widths = Sequence[tuple[int, int]]
"""(kv_lora_rank, qk_rope_head_dim) of every layer."""

LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
}
"""Llama-3-8B's shape; its weights do not matter to the speed."""

SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 4,
    "vocab_size": 2048,
}
"""Llama-3-8B's heads in a model that is made in seconds."""

NARROW = SMALL | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
"""A model whose whole keys and values are a row of 256: converted, nothing need be cut off."""

TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "vocab_size": 512,
}
"""For a machine without a GPU, where only the script itself is tried."""

COMMON = {
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def parameters(shape: dict[str, int]) -> int:
    """Count the weights of a Llama of this shape, norms left out."""
    hidden, width = shape["hidden_size"], shape["head_dim"]
    attention = 2 * width * (shape["num_attention_heads"] + shape["num_key_value_heads"])
    layer = hidden * (attention + 3 * shape["intermediate_size"])
    return shape["num_hidden_layers"] * layer + 2 * shape["vocab_size"] * hidden


def row_bits(rank: int, rope: int) -> list[int]:
    """Give the bits of every 8 columns of a coded row: 6 to 2, most of them 3."""
    units = rank // 8
    wide, middle = -(-units // 12), units // 4
    narrow = (units - wide - middle) // 3
    latent = [6] * wide + [4] * middle + [3] * (units - wide - middle - narrow) + [2] * narrow
    half = [4] * (rope // 32) + [3] * (rope // 16 - rope // 32)
    return latent + half + half


def write_config(
    folder: Path, shape: dict[str, int], widths: Widths | None = None, coded: bool = False
) -> Path:
    """Write the ``config.json`` of a Llama, or of its conversion to these widths.

    Args:
        folder: made if it does not exist.
        shape: of the original.
        widths: of every layer; a single one is that of all layers.
        coded: rows of the cache are coded.
    """
    config: dict[str, Any] = COMMON | shape
    if widths is None:
        config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    else:
        layers = len(widths) if len(widths) > 1 else shape["num_hidden_layers"]
        ranks, ropes = zip(*widths, strict=True)
        config |= {
            "model_type": "llama_mla",
            "architectures": ["LlamaMLAForCausalLM"],
            "num_hidden_layers": layers,
            "kv_lora_rank": max(ranks),
            "qk_rope_head_dim": max(ropes),
            "qk_nope_head_dim": shape["head_dim"],
            "v_head_dim": shape["head_dim"],
            "attention_scale": shape["head_dim"] ** -0.5,
            "q_lora_rank": None,
            "kv_b_proj_groups": shape["num_key_value_heads"],
            "mha2mla": {"format_version": FORMAT_VERSION},
        }
        if len(widths) > 1:
            config |= {"kv_lora_rank_per_layer": ranks, "qk_rope_head_dim_per_layer": ropes}
        if coded:
            each = [row_bits(*width) for width in widths]
            config["row_bits_per_layer"] = each if len(widths) > 1 else each * layers
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    return folder


def write_weights(folder: Path, device: str = "cpu") -> None:
    """Draw random bfloat16 weights on a device and write them beside a ``config.json``.

    They are larger than a fresh model's, so that attention is far from uniform: at this size, a
    score that is wrong by 2 % changes the log-probabilities more than twice as much as bfloat16.
    The weights depend on nothing but the shapes, so that answers can be checked elsewhere.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    drawn = torch.Generator(device).manual_seed(0)
    tensors = {
        name: _weight(name, tensor.shape, drawn, device).cpu()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if name in model.state_dict()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _weight(name: str, shape: torch.Size, drawn: torch.Generator, device: str) -> Tensor:
    if name.endswith(ROPE_INV_FREQ):
        pairs = torch.arange(shape[0], dtype=torch.float32, device=device)
        return 10000.0 ** -(pairs / max(1, len(pairs)))
    if name.endswith(CONSTANTS):
        return torch.randn(shape, generator=drawn, device=device)
    if len(shape) == 1:
        fill = 0.0 if name.endswith("bias") else 1.0
        return torch.full(shape, fill, dtype=torch.bfloat16)
    weight = torch.randn(shape, generator=drawn, device=device) / math.sqrt(shape[1])
    return weight.to(torch.bfloat16)
