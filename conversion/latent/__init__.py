"""Joint low-rank factors of keys and values: one file per strategy, one line here."""

from conversion.latent.calibrated import calibrated
from conversion.latent.factors import LatentFactors, LatentStrategy, LatentTarget
from conversion.latent.svd_joint import svd_joint

LATENT: dict[str, LatentStrategy] = {"calibrated": calibrated, "svd-joint": svd_joint}

__all__ = ["LATENT", "LatentFactors", "LatentStrategy", "LatentTarget"]
