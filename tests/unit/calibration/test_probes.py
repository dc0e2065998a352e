"""The cost of errors of keys and values, against PyTorch's own derivatives."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conversion.calibration.probes import head_gradients
from conversion.calibration.statistics import layer_statistics
from conversion.families.llama import LLAMA
from conversion.latent.factors import latent_target
from conversion.rotary import ROTARY
from tests.support.tiny import VARIANTS, tiny_llama
from vllm_mha2mla.rope import apply_rotary

TOKENS = 7


def test_gradients_of_one_head():
    torch.manual_seed(0)
    q, k, v, R = (torch.randn(9, 4, dtype=torch.float64) for _ in range(4))
    k.requires_grad_()
    v.requires_grad_()
    future = torch.full((9, 9), float("-inf")).triu(1)
    a = (0.7 * q @ k.T + future).softmax(-1)
    expected = torch.autograd.grad(((a @ v) * R).sum(), (k, v))
    found = head_gradients(a.detach(), q, v.detach(), R, 0.7)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_metric_is_the_squared_jacobian_of_the_attention_output(variant):
    """With cross terms of heads, and of keys with values; averaged over tokens."""
    model = tiny_llama(variant)
    model.requires_grad_(False)
    rotary = LlamaRotaryEmbedding(model.config)
    weights = LLAMA.attention_weights(model.model.layers[0].self_attn, model.config, rotary)
    torch.manual_seed(3)
    x = torch.randn(TOKENS, weights.query.shape[2])
    statistics = layer_statistics(weights, [x] * 1500)
    selection = ROTARY["calibrated"](weights, statistics, 4)
    found = latent_target(weights, statistics, selection, key_weight=1).metric

    q = torch.einsum("te,hde->htd", x, weights.query).double()
    k = torch.einsum("te,gde->gtd", x, weights.key).double()
    v = torch.einsum("te,gde->gtd", x, weights.value).double()
    kv_heads, _, d = k.shape
    angles = torch.arange(TOKENS)[:, None] * weights.inv_freq.double()
    turned = [apply_rotary(part, angles.cos(), angles.sin()) for part in (q, k)]
    rotating = turned[0] @ turned[1].repeat_interleave(weights.group, 0).transpose(1, 2)
    future = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)
    nope = torch.einsum("hed,htd->hte", selection.query_nope, q)

    def output(errors):
        """Errors of unrotated keys and of values  # [2, kv_heads, tokens, d]"""
        key, value = errors.repeat_interleave(weights.group, 1)
        scores = rotating + nope @ key.transpose(1, 2)
        a = (weights.scale * scores + future).softmax(-1)
        heads = a @ (v.repeat_interleave(weights.group, 0) + value)
        return torch.einsum("hed,htd->te", weights.output.double(), heads)

    J = torch.autograd.functional.jacobian(output, torch.zeros(2, *k.shape).double())
    J = J.movedim(-2, 0).reshape(TOKENS, -1, 2 * kv_heads * d)
    expected = torch.einsum("nmi,nmj->ij", J, J) / TOKENS
    # A second moment of 500 probes, whose error grows with its width.
    assert float((found - expected).norm() / expected.norm()) < 0.3
    across = 1 - torch.block_diag(*(torch.ones(d, d) for _ in range(2 * kv_heads)))
    cosine = torch.cosine_similarity((found * across).flatten(), (expected * across).flatten(), 0)
    assert float(cosine) > 0.8
