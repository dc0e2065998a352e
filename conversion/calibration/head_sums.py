"""Sums over heads' attention in one window, block of queries by block of queries."""

import torch
from torch import Tensor


class HeadSums:
    """The sums of a head's attention that tell of distances, rotation and values; float32.

    Of one head, or of several at once: their number then leads every shape but that of ``turn``.

    Args:
        turn: ``e^{i theta m}`` of every position  # [tokens, d/2]
        v: the head's values  # [tokens, d]
        gram: ``W_O^T W_O`` of the head  # [d, d]

    Attributes:
        received: attention of all queries on each key  # [tokens]
        distance: attention of all queries at each distance  # [tokens]
        rho: ``sum_m sum_n a e^{i theta (m - n)}``  # [d/2]
        gamma: ``sum_m sum_n a ||W_O (v_n - o_m)||^2``  # []
    """

    def __init__(self, turn: Tensor, v: Tensor, gram: Tensor) -> None:
        size = ((v @ gram) * v).sum(-1, keepdim=True)  # ||W_O v_n||^2
        angles = torch.cat((turn.real, turn.imag), dim=1).expand_as(v)
        self._averaged = torch.cat((angles, v, size), dim=-1)
        self._turn, self._gram = turn, gram
        of_keys, of_heads = v.shape[:-1], v.shape[:-2]
        self.received, self.distance = v.new_zeros(of_keys), v.new_zeros(of_keys)
        self.rho = turn.new_zeros((*of_heads, turn.shape[1]))
        self.gamma = v.new_zeros(of_heads)

    def add(self, a: Tensor, start: int) -> None:
        """Count the attention of consecutive queries, the first at position ``start``.

        Args:
            a: over all keys up to the last query's own  # [queries, start + queries]
            start: position of the first query.
        """
        queries, keys = a.shape[-2:]
        d = self._gram.shape[-1]
        self.received[..., :keys] += a.sum(-2)
        self.distance[..., :keys] += by_distance(a)
        # e^{i theta (m - n)} under a = e^{i theta m} conj(sum_n a e^{i theta n})
        averaged = a @ self._averaged[..., :keys, :]
        real, imaginary, o, mean_of_size = averaged.split((d // 2, d // 2, d, 1), dim=-1)
        turn = self._turn[start : start + queries]
        self.rho += (turn * torch.complex(real, -imaginary)).sum(-2)
        size_of_mean = ((o @ self._gram) * o).sum(-1)
        self.gamma += (mean_of_size[..., 0] - size_of_mean).sum(-1)


def by_distance(a: Tensor) -> Tensor:
    """Causal attention of consecutive queries, summed by distance.

    Args:
        a: the last query's own position is the last key  # [..., queries, keys]

    Returns:
        # [..., keys]
    """
    queries, keys = a.shape[-2:]
    first = keys - queries  # position of the first query
    total = a.new_zeros((*a.shape[:-2], keys))
    if queries > 1:
        # Rows one element longer than they are: in row i, column keys - 1 - D is a[i, m - D] for
        # the query at m = first + i, and what wraps in from the row before is its future, zero.
        # Row 0 would start before the storage.
        a = a.contiguous()
        shifted = a.as_strided(
            (*a.shape[:-2], queries - 1, keys),
            (*a.stride()[:-2], keys + 1, 1),
            a.storage_offset() + first + 2,
        )
        total += shifted.sum(-2).flip(-1)
    total[..., : first + 1] += a[..., 0, : first + 1].flip(-1)
    return total
