"""The maps around a layer's cached rows: what writes them, and what reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.coding.gradients import KeyValueGradients
from conversion.coding.row_statistics import RowStatistics

# The least variance of a column, in parts of the columns' mean power: it comes of float32 products.
LEAST = 1e-6


@dataclass(frozen=True)
class RowMaps:
    """A converted attention, as far as its rows ``[c ; u]`` go, ``u`` before RoPE turns it.

    It writes ``c`` and ``u`` by one linear map of its input, and scores ``(N_h q_h) . (W_UK[g] c) +
    (P_h q_h) . R(n - m) u`` with the original's queries ``q_h``.

    Attributes:
        down: # [rank + rope, inputs]
        bias: ``None``: there is none  # [rank + rope]
        up: ``W_UK`` and ``W_UV`` of every KV head  # [kv_heads, 2 * d, rank]
        query_nope: ``N``  # [heads, d, d]
        query_rope: ``P``  # [heads, rope, d]
    """

    down: Tensor
    bias: Tensor | None
    up: Tensor
    query_nope: Tensor
    query_rope: Tensor

    def metric(self, gradients: KeyValueGradients) -> Tensor:
        """``G = E g g^T`` with ``g`` the gradient at a row  # [rank + rope, rank + rope]

            dL/dc = sum_h W_UK[g(h)]^T N_h a_h + sum_g W_UV[g]^T v_g      dL/du = sum_h P_h b_h

        to the first order in what conversion loses.

        Args:
            gradients: at the keys and values of the original layer.
        """
        heads, d, _ = self.query_nope.shape
        w_uk, w_uv = self.up.float().split((d, d), dim=1)
        keys = w_uk.repeat_interleave(heads // len(w_uk), dim=0).mT @ self.query_nope.float()
        # [rank, heads * d], [rope, heads * d], [rank, kv_heads * d]
        a, b, v = (x.transpose(0, 1).flatten(1) for x in (keys, self.query_rope.float(), w_uv.mT))
        latent = torch.cat((a, torch.zeros_like(a), v), dim=1)
        rotary = torch.cat((torch.zeros_like(b), b, b.new_zeros(len(b), v.shape[1])), dim=1)
        maps = torch.cat((latent, rotary))
        return maps @ gradients.moment @ maps.T

    def statistics(self, metric: Tensor, mean: Tensor, covariance: Tensor) -> RowStatistics:
        """The statistics of rows.

        Args:
            metric: of rows  # [rank + rope, rank + rope]
            mean: of the inputs of the attention's maps  # [inputs]
            covariance: of the same  # [inputs, inputs]
        """
        rope = self.query_rope.shape[1]
        return row_statistics(self.down, self.bias, rope, metric, mean, covariance)


def row_statistics(
    down: Tensor, bias: Tensor | None, rope: int, metric: Tensor, mean: Tensor, covariance: Tensor
) -> RowStatistics:
    """The statistics of the rows ``W x + b``.

    Args:
        down: ``W``  # [rank + rope, inputs]
        bias: ``b``; ``None``: there is none  # [rank + rope]
        rope: rotary columns, the last of a row.
        metric: of rows at least as wide, whose further latent columns are left out
            # [more + rope, more + rope]
        mean: of ``x``, float64  # [inputs]
        covariance: of the same  # [inputs, inputs]
    """
    W = down.double()
    mu = W @ mean if bias is None else W @ mean + bias.double()
    columns = torch.arange(len(metric), device=W.device)
    kept = torch.cat((columns[: len(W) - rope], columns[len(columns) - rope :]))
    C = W @ covariance @ W.T
    # Two tokens may be all the text there is: nothing varies then, up to rounding.
    C.diagonal().add_(LEAST * (C.diagonal() + mu.square()).mean())
    return RowStatistics(metric[kept][:, kept], C.float(), mu.float(), rope)
