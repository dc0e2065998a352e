import pytest
import torch

from conversion.layers.balance import balanced
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.hf.attention import LatentAttention
from vllm_mha2mla.hf.llama import LlamaMLAConfig

HEADS = 3


def attention(widths, bias):
    config = LlamaMLAConfig(
        hidden_size=12, num_attention_heads=HEADS, num_key_value_heads=1, qk_nope_head_dim=4,
        v_head_dim=5, attention_scale=0.5, attention_bias=bias,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    module = LatentAttention(config, 0, widths).double()
    with torch.no_grad():
        module.rope_inv_freq.copy_(torch.rand(widths.qk_rope_head_dim // 2))
    return module


@pytest.mark.parametrize("widths", [LatentWidths(7, 4), LatentWidths(1, 0), LatentWidths(3, 6)])
@pytest.mark.parametrize("bias", [False, True])
def test_balanced_factors_are_the_same_attention(widths, bias):
    torch.manual_seed(0)
    module = attention(widths, bias)
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    rank = widths.kv_lora_rank
    # Scales as far apart as a metric leaves them; one number that nothing writes.
    tensors["kv_a_proj_with_mqa.weight"] *= torch.logspace(-4, 4, widths.width)[:, None]
    if rank > 1:
        tensors["kv_a_proj_with_mqa.weight"][0] = 0
    module.load_state_dict(tensors)
    x, places = torch.randn(1, 9, 12).double(), torch.arange(9)[None]
    before = module(x, position_ids=places)[0]
    found = balanced(tensors, HEADS, widths)
    module.load_state_dict(found)
    torch.testing.assert_close(module(x, position_ids=places)[0], before)

    down, up = found["kv_a_proj_with_mqa.weight"], found["kv_b_proj.weight"]
    first = 1 if rank > 1 else 0
    torch.testing.assert_close(down[first:rank].norm(dim=1), up[:, first:].norm(dim=0))
    pairs = widths.qk_rope_head_dim // 2
    key = down[rank:].view(2, pairs, 12).square().sum((0, 2))
    query = found["q_proj.weight"].view(HEADS, -1, 12)[:, 4:].view(HEADS, 2, pairs, 12)
    torch.testing.assert_close(key, query.square().sum((0, 1, 3)))
