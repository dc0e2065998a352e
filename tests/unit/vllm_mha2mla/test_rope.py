import torch

from vllm_mha2mla.rope import apply_rotary, rotary_angles


def test_rotation_is_complex_multiplication():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8)
    inv_freq = torch.rand(4)
    positions = torch.tensor([0, 1, 7, 100, 4000])
    cos, sin = rotary_angles(positions, inv_freq)
    turned = apply_rotary(x, cos[:, None], sin[:, None])

    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    angle = positions[:, None].double() * inv_freq.double()
    expected = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
    # Angles reach 4000 rad: float32 keeps them to 4000 * 2^-24 = 2.4e-4.
    torch.testing.assert_close(turned[..., :4].double(), expected.real, atol=2e-3, rtol=0)
    torch.testing.assert_close(turned[..., 4:].double(), expected.imag, atol=2e-3, rtol=0)
