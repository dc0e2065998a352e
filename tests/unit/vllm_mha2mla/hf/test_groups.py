"""Up-projections stored once per KV head, and once per query head as in format 1."""

import torch

from tests.support.tiny_converted import TINY_WIDTHS
from vllm_mha2mla.hf.llama import LlamaMLAConfig, LlamaMLAForCausalLM

HEADS, GROUPS, NOPE, V = 4, 2, 16, 12


def model(groups):
    config = LlamaMLAConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=len(TINY_WIDTHS),
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        kv_b_proj_groups=groups,
        kv_lora_rank_per_layer=[rank for rank, _ in TINY_WIDTHS],
        qk_rope_head_dim_per_layer=[rope for _, rope in TINY_WIDTHS],
        qk_nope_head_dim=NOPE,
        v_head_dim=V,
        attention_scale=0.2,
    )
    return LlamaMLAForCausalLM(config).eval()


@torch.no_grad()
def test_a_checkpoint_of_format_1_computes_the_same():
    torch.manual_seed(0)
    shared, per_head = model(GROUPS), model(None)
    weights = shared.state_dict()
    for name, parameter in weights.items():
        if not name.endswith("norm.weight"):
            parameter.uniform_(-0.3, 0.3)
    repeated = {
        name: weight.view(GROUPS, NOPE + V, -1).repeat_interleave(HEADS // GROUPS, 0).flatten(0, 1)
        if name.endswith("kv_b_proj.weight")
        else weight
        for name, weight in weights.items()
    }
    per_head.load_state_dict(repeated)
    ids = torch.arange(20).view(1, -1)
    # The same products in another order.
    torch.testing.assert_close(shared(ids).logits, per_head(ids).logits, rtol=1e-5, atol=1e-5)
