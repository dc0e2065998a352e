"""Methods: a rotary strategy with a low-rank strategy."""

from pydantic import BaseModel, ConfigDict


class Method(BaseModel):
    """A rotary strategy with a low-rank strategy, and how they share a budget."""

    model_config = ConfigDict(frozen=True)

    rotary: str
    latent: str
    rope_share: float
    """Part of the cache that goes to rotary keys when only the whole budget is given."""
    spread: bool = False
    """Whether layers get different widths when only the whole budget is given."""
    refit: bool = False
    """Whether the output projection is refitted."""


# CARE's release removes RoPE as TransMLA does, on whose code it is built, and then factorises; the
# published shares are 64 of 576 numbers (TransMLA) and 64 of 320 (CARE).
METHODS = {
    "calibrated": Method(
        rotary="calibrated", latent="calibrated", rope_share=1 / 3, spread=True, refit=True
    ),
    "mha2mla": Method(rotary="2-norm", latent="svd-joint", rope_share=1 / 5),
    "transmla": Method(rotary="rorope", latent="balanced-pca", rope_share=1 / 9),
    "care": Method(rotary="rorope", latent="whitened", rope_share=1 / 5),
}
