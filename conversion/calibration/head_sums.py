"""Sums over one head's attention in one window, block of queries by block of queries."""

import torch
from torch import Tensor


class HeadSums:
    """The sums of one head's attention that tell of distances, rotation and values; float32.

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
        size = ((v @ gram) * v).sum(1, keepdim=True)  # ||W_O v_n||^2
        self._averaged = torch.cat((turn.real, turn.imag, v, size), dim=1)
        self._turn, self._gram = turn, gram
        self.received, self.distance = v.new_zeros(len(v)), v.new_zeros(len(v))
        self.rho = torch.zeros_like(turn[0])
        self.gamma = v.new_zeros(())

    def add(self, a: Tensor, start: int) -> None:
        """Count the attention of consecutive queries, the first at position ``start``.

        Args:
            a: over all keys up to the last query's own  # [queries, start + queries]
            start: position of the first query.
        """
        queries, keys = a.shape
        d = len(self._gram)
        self.received[:keys] += a.sum(0)
        self.distance[:keys] += by_distance(a)
        # e^{i theta (m - n)} under a = e^{i theta m} conj(sum_n a e^{i theta n})
        averaged = a @ self._averaged[:keys]
        real, imaginary, o, mean_of_size = averaged.split((d // 2, d // 2, d, 1), dim=1)
        turn = self._turn[start : start + queries]
        self.rho += (turn * torch.complex(real, -imaginary)).sum(0)
        size_of_mean = ((o @ self._gram) * o).sum(1)
        self.gamma += (mean_of_size[:, 0] - size_of_mean).sum()


def by_distance(a: Tensor) -> Tensor:
    """Causal attention of consecutive queries, summed by distance.

    Args:
        a: the last query's own position is the last key  # [queries, keys]

    Returns:
        # [keys]
    """
    queries, keys = a.shape
    first = keys - queries  # position of the first query
    total = a.new_zeros(keys)
    if queries > 1:
        # Rows one element longer than they are: in row i, column keys - 1 - D is a[i, m - D] for
        # the query at m = first + i, and what wraps in from the row before is its future, zero.
        # Row 0 would start before the storage.
        shifted = a.contiguous().as_strided(
            (queries - 1, keys), (keys + 1, 1), a.storage_offset() + first + 2
        )
        total += shifted.sum(0).flip(0)
    total[: first + 1] += a[0, : first + 1].flip(0)
    return total
