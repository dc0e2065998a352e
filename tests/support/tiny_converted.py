"""A tiny converted checkpoint of random weights, another width in every layer."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.support.tiny import tiny_tokenizer
from vllm_mha2mla.config import CONSTANTS, FORMAT_VERSION, ROPE_INV_FREQ
from vllm_mha2mla.hf.llama import LlamaMLAConfig, LlamaMLAForCausalLM

TINY_WIDTHS = [(24, 16), (8, 4), (40, 0), (16, 8), (1, 0)]  # (kv_lora_rank, qk_rope_head_dim)
CODED_WIDTHS = [(24, 16), (8, 32), (40, 0), (16, 16)]
# Bits of every 8 columns: latent, first halves of rotary pairs, second halves.
CODED_BITS = [[6, 4, 2, 4, 4], [8, 6, 3, 6, 3], [6, 4, 3, 2, 1], [4, 3, 2, 2]]


def save_tiny_converted(
    folder: Path,
    q_lora_rank: int | None = None,
    widths: Sequence[tuple[int, int]] = TINY_WIDTHS,
    v_head_dim: int = 12,
    row_bits: list[list[int]] | None = None,
    seed: int = 0,
) -> Path:
    config = LlamaMLAConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=len(widths),
        num_attention_heads=4,
        num_key_value_heads=2,
        kv_b_proj_groups=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        attention_bias=True,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=max(rank for rank, _ in widths),
        qk_rope_head_dim=max(rope for _, rope in widths),
        kv_lora_rank_per_layer=[rank for rank, _ in widths],
        qk_rope_head_dim_per_layer=[rope for _, rope in widths],
        qk_nope_head_dim=16,
        v_head_dim=v_head_dim,
        row_bits_per_layer=row_bits,
        attention_scale=0.2,
        mha2mla={"format_version": FORMAT_VERSION},
    )
    model = LlamaMLAForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if "norm" in name:
                continue
            # Larger than the usual initialisation: attention far from uniform, few near ties.
            for constant, tensor in module.named_buffers(recurse=False):
                if constant == ROPE_INV_FREQ:
                    tensor.uniform_(0.02, 1.0, generator=generator)
                elif constant in CONSTANTS:
                    tensor.normal_(std=0.15, generator=generator)
            for parameter in module.parameters(recurse=False):
                parameter.normal_(std=0.15, generator=generator)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_coded(folder: Path, seed: int = 0) -> Path:
    """The same with coded rows."""
    return save_tiny_converted(folder, widths=CODED_WIDTHS, row_bits=CODED_BITS, seed=seed)
