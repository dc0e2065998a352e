"""Joint low-rank factors of keys and values: one file per strategy, one line here."""

from conversion.latent.balanced_pca import balanced_pca
from conversion.latent.calibrated import calibrated
from conversion.latent.factors import LatentFactors, LatentStrategy, LatentTarget
from conversion.latent.svd_joint import svd_joint
from conversion.latent.svd_split import svd_split
from conversion.latent.whitened import whitened

LATENT: dict[str, LatentStrategy] = {
    "calibrated": calibrated,
    "svd-joint": svd_joint,
    "svd-split": svd_split,
    "balanced-pca": balanced_pca,
    "whitened": whitened,
}

# Strategies whose factors of a lower rank are the first components of those of a higher one.
IN_ORDER = frozenset({"calibrated", "svd-joint", "balanced-pca", "whitened"})

__all__ = ["IN_ORDER", "LATENT", "LatentFactors", "LatentStrategy", "LatentTarget"]
