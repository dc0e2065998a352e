"""Columns of a row in units of eight: their bits, their bytes, and what rounding them costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.coding.row_statistics import RowStatistics
from vllm_mha2mla.coding.codebooks import DISTORTION
from vllm_mha2mla.coding.row_code import SCALES, UNIT, RowCode
from vllm_mha2mla.config import LatentWidths

# Eigenvalues add up many components: they bear a metric that is closer to what was measured.
SHRINKAGE, RIDGE = 0.1, 1e-2


@dataclass(frozen=True)
class LayerChoices:
    """The widths that a layer may have, and what they cost at each number of bits.

    Candidates have as many units as the widest; those that one lacks have size and cost 0.

    Attributes:
        widths: of each candidate.
        bits: to choose from, rising.
        truncation: nats per token that conversion costs, nothing coded  # [candidates], float64
        sizes: bytes of a unit per bit: 1 for latent ones, 2 for rotary pairs
            # [candidates, units]
        costs: nats per token of each unit at each number of bits; latent ones come first
            # [candidates, units, bits], float64
    """

    widths: list[LatentWidths]
    bits: tuple[int, ...]
    truncation: Tensor
    sizes: Tensor
    costs: Tensor

    @property
    def least_bytes(self) -> int:
        """The smallest row."""
        return int(self.sizes.sum(-1).min()) * self.bits[0] + SCALES

    @property
    def most_bytes(self) -> int:
        """The largest row."""
        return int(self.sizes.sum(-1).max()) * self.bits[-1] + SCALES

    def row_code(self, candidate: int, units: Tensor) -> RowCode:
        """The code of a candidate's row.

        Args:
            candidate: its number.
            units: the place of each unit's bits in ``bits``  # [units]
        """
        widths = self.widths[candidate]
        latent, pairs = widths.kv_lora_rank // UNIT, widths.qk_rope_head_dim // 2 // UNIT
        bits = [self.bits[place] for place in units[: latent + pairs].tolist()]
        return RowCode(widths, (*bits, *bits[latent:]))


@dataclass(frozen=True)
class Candidate:
    """One choice of a layer's widths.

    Attributes:
        widths: of the cache.
        truncation: nats per token that the conversion of this layer costs, nothing coded.
        latent: ``lambda`` of the latent's components, falling  # [rank]
        pairs: ``lambda`` of a number of each rotary pair, falling  # [rope / 2]
    """

    widths: LatentWidths
    truncation: float
    latent: Tensor
    pairs: Tensor


def candidate(statistics: RowStatistics, rank: int, truncation: float) -> Candidate:
    """A choice of widths, from the statistics of the widest rows with these rotary columns."""
    of_rank = statistics.of_rank(rank)
    latent = of_rank.latent_costs(SHRINKAGE, RIDGE)
    pairs, _, _ = of_rank.rotary_spectrum()
    return Candidate(LatentWidths(rank, statistics.rope), truncation, latent.cpu(), pairs.cpu())


def layer_choices(candidates: Sequence[Candidate], bits: Sequence[int]) -> LayerChoices:
    """Put a layer's candidates side by side.

    Args:
        candidates: their widths have whole units.
        bits: to choose from, rising.
    """
    D = torch.tensor([DISTORTION[b] for b in bits], dtype=torch.float64)
    sizes, costs = [], []
    for one in candidates:
        lam = torch.cat(
            (one.latent.view(-1, UNIT).sum(1), 2 * one.pairs.view(-1, UNIT).sum(1))
        )  # [units]
        sizes.append(torch.ones(len(lam), dtype=torch.long))
        sizes[-1][len(one.latent) // UNIT :] = 2
        costs.append(lam[:, None] * D / 2)
    pad = torch.nn.utils.rnn.pad_sequence
    return LayerChoices(
        widths=[one.widths for one in candidates],
        bits=tuple(bits),
        truncation=torch.tensor([one.truncation for one in candidates], dtype=torch.float64),
        sizes=pad(sizes, batch_first=True),
        costs=pad(costs, batch_first=True),
    )
