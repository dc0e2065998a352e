"""Joint low-rank factors of keys and values: one file per strategy, one line here."""

from typing import TYPE_CHECKING

from conversion.runtime.registry import Registry

if TYPE_CHECKING:
    from conversion.latent.factors import LatentMethod

LATENT: "Registry[LatentMethod]" = Registry(
    __name__,
    {
        "calibrated": "calibrated",
        "svd-joint": "svd_joint",
        "svd-split": "svd_split",
        "balanced-pca": "balanced_pca",
        "whitened": "whitened",
    },
)
