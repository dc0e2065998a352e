"""The code of a layer's cache rows: a basis, bits for every component, two scales a row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from coded_latents_parts.codebooks import gaussian_codebook
from vllm_mha2mla.config import LatentWidths

# Of a row: one scale for the latent and one for the rotary columns.
SCALES, SCALE_BITS = 2, 8
# Scales are powers of two with so many steps to the octave.
STEPS_PER_OCTAVE = 8
# The metric of a few thousand tokens is noisy: half of it is replaced by its diagonal, and so much
# of the diagonal's mean is added.
SHRINKAGE, RIDGE = 0.5, 3e-2
TINY = 1e-14
# Variances below this part of the largest are rounding of float32 rows: not to be scaled up.
LEAST_VARIANCE = 1e-8


@dataclass(frozen=True)
class RowStatistics:
    """Rows of a layer converted at full rank with some rotary columns, before RoPE turns these.

    A lower rank keeps the first numbers of the latent. The first row of a text is not counted.

    Attributes:
        metric: ``G = E g g^T``, with ``g`` the gradient of a drawn label's log-likelihood at the
            row: a small error ``e`` costs ``e^T G e / 2`` nats  # [full, full]
        covariance: ``C`` of rows  # [full, full]
        mean: ``mu`` of rows  # [full]
        rope: rotary columns, the last of a row.
    """

    metric: Tensor
    covariance: Tensor
    mean: Tensor
    rope: int

    @property
    def rank(self) -> int:
        """The full rank: numbers of the widest latent."""
        return len(self.mean) - self.rope


class RowCode:
    """Rounds rows as a coded cache would hold them.

    Every row but a text's first one becomes, with ``z`` its numbers in the basis below,

        y -> mu + A^-1 (s Q_b(z / s)),    z = A (y - mu),    s = RMS(z), in 8 bits

    where ``Q_b`` is the Gaussian codebook of each component's bits ``b``. The latent and the rotary
    columns have an ``s`` each. Rotary columns are coded before RoPE turns them, where their mean is
    most of their power.

    The latent's basis comes from the metric ``G`` and the covariance ``C``: with ``V`` the
    eigenvectors and ``lambda`` the eigenvalues of ``G^1/2 C G^1/2``, the components of ``V^T G^1/2
    (y - mu)`` are uncorrelated, have variances ``lambda``, and errors in them cost alike. Those
    with the same bits form a class. Within it they are scaled by ``lambda^-1/4``, which evens out
    the costs of a common step, and turned by a random rotation, which makes them Gaussian and alike
    and so fit for one codebook and one scale. At last each is divided by its standard deviation:
    that is ``A``. Rotary columns stay as they are but for that division, so that RoPE's pairs do.

    Args:
        statistics: of the layer's rows at full rank.
        widths: the layer's.
        bits: of every component, the latent's by falling ``lambda``  # [rank + rope]
    """

    def __init__(self, statistics: RowStatistics, widths: LatentWidths, bits: Tensor) -> None:
        rank = widths.kv_lora_rank
        mu, C = statistics.mean, statistics.covariance
        rotary = slice(statistics.rank, None)
        self._rank = rank
        self._mean = torch.cat((mu[:rank], mu[rotary]))  # [rank + rope]
        self._latent_bits, self._rotary_bits = bits[:rank], bits[rank:]
        to_basis, from_basis = _latent_basis(
            statistics.metric[:rank, :rank], C[:rank, :rank], self._latent_bits
        )
        self._to_basis, self._from_basis = to_basis.float(), from_basis.float()  # [rank, rank]
        self._deviation = _floored(C.diagonal()[rotary]).sqrt()  # [rope]

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows as they come out of the cache, before RoPE.

        Args:
            rows: of whole texts, float32  # [texts, tokens, rank + rope]
        """
        centred = rows - self._mean
        z = centred[..., : self._rank] @ self._to_basis.T  # [texts, tokens, rank]
        u = centred[..., self._rank :] / self._deviation  # [texts, tokens, rope]
        latent = _rounded(z, self._latent_bits) @ self._from_basis.T
        rotary = _rounded(u, self._rotary_bits) * self._deviation
        coded = torch.cat((latent, rotary), dim=-1) + self._mean
        coded[:, 0] = rows[:, 0]
        return coded


def steadied(metric: Tensor, shrinkage: float, ridge: float) -> Tensor:
    """A noisy metric drawn towards its diagonal, and this towards its mean  # [n, n]"""
    diagonal = metric.diagonal()
    drawn = (1 - shrinkage) * metric + shrinkage * torch.diag(diagonal)
    return drawn + ridge * diagonal.mean() * torch.eye(len(metric), dtype=metric.dtype)


def _latent_basis(metric: Tensor, covariance: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """``A`` and its inverse  # each [rank, rank], float64"""
    C = covariance.double()
    G = steadied(metric.double(), SHRINKAGE, RIDGE)
    values, U = torch.linalg.eigh(G)
    values = values.clamp_min(TINY)
    root, inverse_root = U * values.sqrt() @ U.T, U * values.rsqrt() @ U.T  # G^1/2, G^-1/2
    lam, V = torch.linalg.eigh(root @ C @ root)
    lam, V = _floored(lam.flip(0)), V.flip(1)
    to_basis, from_basis = V.T @ root, inverse_root @ V
    variance = torch.empty_like(lam)
    for b in bits.unique().tolist():
        (of_class,) = (bits == b).nonzero(as_tuple=True)
        scale = lam[of_class] ** -0.25
        Q = _rotation(len(of_class))
        to_basis[of_class] = Q @ (scale[:, None] * to_basis[of_class])
        from_basis[:, of_class] = (from_basis[:, of_class] / scale) @ Q.T
        variance[of_class] = Q.square() @ (scale.square() * lam[of_class])
    deviation = variance.sqrt()
    return to_basis / deviation[:, None], from_basis * deviation


def _floored(variances: Tensor) -> Tensor:
    return variances.clamp_min(LEAST_VARIANCE * float(variances.max()) + TINY)


def _rotation(size: int) -> Tensor:
    """A random rotation that depends on nothing but its size  # [size, size], float64"""
    generator = torch.Generator().manual_seed(size)
    Q: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
    return Q


def _rounded(z: Tensor, bits: Tensor) -> Tensor:
    """Components of unit variance in their codebooks, times the row's scale.

    Args:
        z: components  # [texts, tokens, n]
        bits: of each  # [n]
    """
    size = z.square().mean(-1, keepdim=True).sqrt().clamp_min(TINY)
    scale = torch.exp2((size.log2() * STEPS_PER_OCTAVE).round() / STEPS_PER_OCTAVE)
    result = torch.empty_like(z)
    for b in bits.unique().tolist():
        (of_class,) = (bits == b).nonzero(as_tuple=True)
        result[..., of_class] = gaussian_codebook(b)(z[..., of_class] / scale)
    return result * scale
