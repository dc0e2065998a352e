"""Coded rows in the transformers model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_converted import save_tiny_coded
from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.config import CONSTANTS
from vllm_mha2mla.kernels import PagedBatch
from vllm_mha2mla.kernels.reference import ReferenceLayer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_coded(tmp_path_factory.mktemp("coded"))


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
@pytest.mark.parametrize("index", range(4))
def test_attention_is_the_reference_kernel_on_a_coded_cache(model, index):
    attention, tokens = model.model.layers[index].self_attn, 21
    hidden = torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(index))
    positions = torch.arange(tokens)
    mask = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]
    expected, _ = attention.attend(hidden, mask, position_ids=positions[None])

    code = attention.code
    cache = torch.randint(0, 256, (4, 8, code.row_bytes)).byte()
    up = attention.kv_b_proj.weight.view(attention.groups, -1, attention.rank)
    layer = ReferenceLayer(
        cache,
        *(up[:, : attention.nope], up[:, attention.nope :], attention.rope_inv_freq),
        *(attention.scaling, attention.num_heads),
        CodedRow(code, attention.rotary_mean, attention.first_row),
    )
    blocks = torch.tensor([[2, 0, 3]], dtype=torch.int32)
    batch = PagedBatch(
        num_tokens=tokens,
        query_start_loc=torch.tensor([0, tokens], dtype=torch.int32),
        seq_lens=torch.tensor([tokens], dtype=torch.int32),
        block_table=blocks,
        slot_mapping=blocks[0, positions // 8].long() * 8 + positions % 8,
    )
    out = torch.empty(tokens, expected.shape[-1])
    layer(
        *(attention.q_proj(hidden)[0], attention.kv_a_proj_with_mqa(hidden)[0]),
        *(positions, batch, out),
    )
    # The same rows; sums in another order.
    torch.testing.assert_close(out, expected[0], rtol=0, atol=2e-5)


@torch.no_grad()
def test_one_token_at_a_time_gives_the_logits_of_the_whole(model):
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
    whole = model(ids).logits
    cache, steps = None, []
    for t in range(ids.shape[1]):
        result = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        steps.append(result.logits)
    # A number near the border of two codes may fall on the other side.
    close = (torch.cat(steps, dim=1) - whole).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.9


@torch.no_grad()
def test_the_beginning_of_a_text_is_found_beside_padding(model):
    ids = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(1))
    alone = model(ids).logits
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    beside = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-3)


def test_constants_stay_in_float32(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    constants = [x for name, x in model.named_buffers() if name.endswith(CONSTANTS)]
    assert len(constants) == 3 * 4
    assert all(x.dtype == torch.float32 for x in constants)


def test_training_passes_through_the_coding(model):
    ids = torch.randint(0, 256, (1, 9))
    model(ids, labels=ids).loss.backward()
    for layer in model.model.layers:
        assert layer.self_attn.kv_a_proj_with_mqa.weight.grad.abs().sum() > 0
    model.zero_grad()
