"""Statistics of a layer's cached rows: mean, covariance, and what errors in them cost."""

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.runtime.linalg import cholesky

# Variances below this part of their mean count as so large. Rounding to 8 bits costs as much, and
# what varies less in the text that it is measured on may vary far more in another.
LEAST = 1e-4
# Eigenvalues of a metric below this part of their mean are rounding: not to be divided by.
LEAST_METRIC = 1e-10


@dataclass(frozen=True)
class RowStatistics:
    """The rows ``y = [c ; u]`` of a layer, before RoPE turns ``u``; each text's first row aside.

    Attributes:
        metric: ``G = E g g^T`` with ``g`` the gradient of a drawn label's log-likelihood at a row:
            a small error ``e`` costs ``e^T G e / 2`` nats  # [rank + rope, rank + rope]
        covariance: ``C``  # [rank + rope, rank + rope]
        mean: ``mu``  # [rank + rope]
        rope: rotary columns, the last of a row.
    """

    metric: Tensor
    covariance: Tensor
    mean: Tensor
    rope: int

    @property
    def rank(self) -> int:
        """Latent columns, the first of a row."""
        return len(self.mean) - self.rope

    def of_rank(self, rank: int) -> "RowStatistics":
        """The same of a layer that keeps the first ``rank`` latent columns."""
        columns = torch.arange(len(self.mean), device=self.mean.device)
        kept = columns[(columns < rank) | (columns >= self.rank)]
        return RowStatistics(
            self.metric[kept][:, kept], self.covariance[kept][:, kept], self.mean[kept], self.rope
        )

    def latent_costs(self, shrinkage: float, ridge: float) -> Tensor:
        """``lambda`` of ``latent_spectrum`` alone, in a fraction of its time  # [rank], float64"""
        rank = self.rank
        L = cholesky(_steadied(self.metric[:rank, :rank].double(), shrinkage, ridge), 0)
        C = self.covariance[:rank, :rank].double()
        return _floored(torch.linalg.eigvalsh(L.T @ C @ L).flip(0))

    def latent_spectrum(self, shrinkage: float, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """The components of the latent that are uncorrelated and whose errors cost alike.

        With ``V`` the eigenvectors and ``lambda`` the eigenvalues of ``G^1/2 C G^1/2``, those of
        ``V^T G^1/2 (c - mu)`` have variances ``lambda`` and each costs half its squared error.

        Args:
            shrinkage: the part of the metric that gives way to its diagonal; measured on few
                tokens, it is noisy.
            ridge: the part of the diagonal's mean that is added.

        Returns:
            ``lambda``, falling  # [rank]; ``V^T G^1/2`` and its inverse  # both [rank, rank];
            all float64
        """
        rank = self.rank
        G = _steadied(self.metric[:rank, :rank].double(), shrinkage, ridge)
        values, U = torch.linalg.eigh(G)
        values = _floored(values, LEAST_METRIC)
        root, inverse_root = U * values.sqrt() @ U.T, U * values.rsqrt() @ U.T
        lam, V = torch.linalg.eigh(root @ self.covariance[:rank, :rank].double() @ root)
        lam, V = _floored(lam.flip(0)), V.flip(1)
        return lam, V.T @ root, inverse_root @ V

    def rotary_spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rotary pairs, the costliest first.

        RoPE turns both numbers of a pair into one another, so they share variance and cost.

        Returns:
            ``lambda``: twice the cost of a number's loss, falling; the order of the pairs that
            makes it so; and a number's variance, in that order  # each [rope / 2]; float64
        """
        C, G = (
            x.diagonal()[self.rank :].double().view(2, -1).mean(0)
            for x in (self.covariance, self.metric)
        )
        lam = C * G
        order = lam.argsort(descending=True, stable=True)
        return lam[order], order, _floored(C)[order]


def _steadied(metric: Tensor, shrinkage: float, ridge: float) -> Tensor:
    """A noisy metric drawn towards its diagonal, and this towards its mean  # [n, n]"""
    diagonal = metric.diagonal()
    drawn = (1 - shrinkage) * metric + shrinkage * torch.diag(diagonal)
    # A layer that nothing depends on has no metric: any will do.
    added = ridge * diagonal.mean() + torch.finfo(torch.float32).tiny
    return drawn + added * torch.eye(len(metric), dtype=metric.dtype, device=metric.device)


def _floored(values: Tensor, least: float = LEAST) -> Tensor:
    if not len(values):
        return values
    return values.clamp_min(least * float(values.mean()) + torch.finfo(torch.float32).tiny)
