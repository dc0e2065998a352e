import pytest
import torch

pytest.importorskip("triton")

from vllm_mha2mla.kernels.cuda.grouped_product import grouped_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "groups", "size", "inputs", "outputs"),
    [(1, 2, 4, 16, 40), (5, 1, 1, 100, 7), (9, 3, 3, 64, 80), (40, 2, 2, 130, 33), (0, 2, 1, 8, 8)],
)
def test_every_head_meets_its_groups_matrix(dtype, tokens, groups, size, inputs, outputs):
    generator = torch.Generator().manual_seed(0)
    heads = groups * size
    # Strided as in use: queries beside rotary columns, outputs beside them too, W_UV transposed.
    x = torch.randn(tokens, heads, inputs + 6, generator=generator).to(dtype)[..., :inputs]
    weights = torch.randn(groups, outputs, inputs, generator=generator).to(dtype).transpose(1, 2)
    buffer = torch.full((tokens, heads, outputs + 3), float("nan"), dtype=dtype)
    out = buffer[..., :outputs]
    grouped_product(x, weights, out)
    of_head = weights.double().repeat_interleave(size, 0)  # [heads, inputs, outputs]
    expected = torch.einsum("thk,hkn->thn", x.double(), of_head)
    # Sums of so many products in float32, rounded once to the dtype.
    sums = inputs * torch.finfo(torch.float32).eps
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=sums + rounding)
    assert buffer[..., outputs:].isnan().all()
