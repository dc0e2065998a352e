"""Any pair of strategies at full width against the original attention."""

import pytest
import torch

from conversion.latent import LATENT
from conversion.latent.factors import latent_target
from conversion.layers.assemble import assemble
from conversion.rotary import ROTARY
from tests.support.measured import measure, rotation
from tests.support.tiny import VARIANTS


def converted_outputs(tensors, x, weights, rank):
    heads, d, _ = weights.query.shape
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    rope = 2 * len(tensors["rope_inv_freq"])
    q = x @ tensors["q_proj.weight"].T + tensors.get("q_proj.bias", 0)
    q_nope, q_rope = q.view(len(x), heads, d + rope).split((d, rope), -1)
    cached = x @ tensors["kv_a_proj_with_mqa.weight"].T
    cached = cached + tensors.get("kv_a_proj_with_mqa.bias", 0)
    latent, k_rope = cached.split((rank, rope), -1)
    up = (latent @ tensors["kv_b_proj.weight"].T).view(len(x), -1, 2 * d)
    up = up.repeat_interleave(weights.group, 1)
    k_nope, v = up.split((d, d), -1)
    turned = [rotation(tensors["rope_inv_freq"], m) for m in range(len(x))]
    q_rope = torch.stack([q_rope[m] @ turned[m].T for m in range(len(x))])
    k_rope = torch.stack([k_rope[m] @ turned[m].T for m in range(len(x))])
    scores = torch.einsum("mhd,nhd->hmn", q_nope, k_nope)
    scores = scores + torch.einsum("mhr,nr->hmn", q_rope, k_rope)
    return outputs(scores, v, weights, tensors["o_proj.weight"], tensors["o_proj.bias"])


def original_outputs(x, weights):
    def project(weight, bias, count):
        y = torch.einsum("te,gde->tgd", x, weight.double()) + bias.double()
        return y.repeat_interleave(count, 1)

    heads = len(weights.query)
    turned = [rotation(weights.inv_freq.double(), m) for m in range(len(x))]
    q = project(weights.query, weights.query_bias, 1)
    k = project(weights.key, weights.key_bias, weights.group)
    v = project(weights.value, weights.value_bias, weights.group)
    q = torch.stack([q[m] @ turned[m].T for m in range(len(x))])
    k = torch.stack([k[m] @ turned[m].T for m in range(len(x))])
    o = weights.output.double().permute(1, 0, 2).reshape(-1, heads * q.shape[-1])
    scores = torch.einsum("mhd,nhd->hmn", q, k)
    return outputs(scores, v, weights, o, weights.output_bias.double())


def outputs(scores, v, weights, o, bias):
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    scores = (scores * weights.scale).masked_fill(future, float("-inf"))
    attended = torch.einsum("hmn,nhd->mhd", scores.softmax(-1), v)
    return scores, attended.flatten(1) @ o.T + bias


@pytest.mark.parametrize("latent", LATENT)
@pytest.mark.parametrize("rotary", ROTARY)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_at_full_width_any_pair_is_the_original_attention(variant, bias, rotary, latent):
    weights, statistics, inputs = measure(variant, attention_bias=bias)
    kv_heads, d, _ = weights.key.shape
    selection = ROTARY[rotary](weights, statistics, kv_heads * d)
    target = latent_target(weights, statistics, selection, key_weight=0.5)
    factors = LATENT[latent](target, kv_heads * d)
    tensors = assemble(weights, statistics, selection, factors, bias)
    x = inputs[0].double()
    scores, output = converted_outputs(tensors, x, weights, kv_heads * d)
    expected_scores, expected = original_outputs(x, weights)
    # Tensors are stored in float32: 64 products of numbers up to 10, rounded at 1e-7.
    torch.testing.assert_close(scores, expected_scores, atol=2e-4, rtol=0)
    torch.testing.assert_close(output, expected, atol=2e-4, rtol=0)
