import pytest
import torch
from torch import nn

pytest.importorskip("vllm")

from vllm_mha2mla.attention.joined import join


def parameters(*shapes):
    return [nn.Parameter(torch.randn(shape), requires_grad=False) for shape in shapes]


@pytest.mark.parametrize("shapes", [((6, 4), (3, 4)), ((6,), (3,))])
def test_parameters_become_views_of_one_tensor(shapes):
    own = parameters(*shapes)
    expected = torch.cat([one.detach().clone() for one in own])
    whole = join(own)
    assert torch.equal(whole, expected)
    own[1].data.copy_(torch.ones(shapes[1]))
    assert whole[6:].eq(1).all()


def test_exchanged_weights_arrive_where_graphs_read_them():
    own = parameters((6, 4), (3, 4))
    whole = join(own)
    address = whole.data_ptr()
    # Loaded in place, or put in the place of the old ones.
    own[0].data.fill_(2)
    own[1].data = torch.full((3, 4), 3.0)
    again = join(own, whole)
    assert again.data_ptr() == own[0].data_ptr() == address
    assert again[:6].eq(2).all()
    assert again[6:].eq(3).all()
