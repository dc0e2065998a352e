import pytest
import torch

from conversion.layers.refit import OutputRefit
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.hf.attention import LatentAttention
from vllm_mha2mla.hf.llama import LlamaMLAConfig


@pytest.mark.parametrize("ridge", [1e-5, 50, 5e9])
def test_the_refit_is_ridge_regression_towards_the_weights_it_found(ridge):
    torch.manual_seed(0)
    config = LlamaMLAConfig(
        hidden_size=12, num_attention_heads=2, num_key_value_heads=2, qk_nope_head_dim=4,
        v_head_dim=5, attention_scale=0.5,
    )  # fmt: skip
    attention = LatentAttention(config, 0, LatentWidths(6, 2))
    heads, targets = torch.randn(5000, 10), torch.randn(5000, 12)
    # Over eight orders of magnitude, as the first token's stream is a hundred times larger.
    counts = 10 ** torch.linspace(-4, 4, 5000)
    with torch.no_grad():
        refit = OutputRefit(attention.o_proj.weight, attention.o_proj.bias, ridge)
        for window in zip(*(x.split(1000) for x in (heads, targets, counts)), strict=True):
            refit.add(*window)
        found = refit.solve()

    # The same problem as one stacked least squares: the pull is 10 more rows per output.
    root = counts.double().sqrt()[:, None]
    X = torch.cat((heads, torch.ones(5000, 1)), 1).double() * root
    pull = (ridge / 5000 * X[:, :-1].square().sum(0).mean()).sqrt()
    rows = torch.cat((torch.eye(10), torch.zeros(10, 1)), 1).double() * pull
    before = attention.o_proj.weight.detach().T.double()
    stacked = torch.linalg.lstsq(
        torch.cat((X, rows)), torch.cat((targets.double() * root, before * pull))
    ).solution
    # Returned in float32.
    torch.testing.assert_close(found["o_proj.weight"].double(), stacked[:-1].T, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["o_proj.bias"].double(), stacked[-1], atol=1e-5, rtol=0)
