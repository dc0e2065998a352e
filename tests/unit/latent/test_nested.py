import pytest
import torch

from conversion.latent import LATENT
from conversion.latent.factors import latent_target
from conversion.rotary import ROTARY
from tests.support.measured import measure


@pytest.mark.parametrize("strategy", LATENT)
def test_nested_factors_of_a_lower_rank_are_the_first_of_a_higher(strategy):
    weights, statistics, _ = measure("gqa")
    target = latent_target(weights, statistics, ROTARY["high"](weights, statistics, 8), 1.0)
    method = LATENT[strategy]
    small, cut = method(target, 6), method(target, 20).truncated(6)

    def maps(factors):
        return torch.cat((factors.key_up, factors.value_up)) @ factors.down

    # The same decomposition in float64, cut at another column.
    same = torch.allclose(maps(small), maps(cut), rtol=1e-9, atol=1e-9)
    assert same == method.nested
