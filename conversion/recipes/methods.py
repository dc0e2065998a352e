"""Methods: pairs of a rotary and a low-rank strategy, by name."""

from pydantic import BaseModel, ConfigDict


class Method(BaseModel):
    """A rotary and a low-rank strategy, and their defaults."""

    model_config = ConfigDict(frozen=True)

    rotary: str
    latent: str
    rope_share: float
    """Share of the cache for rotary keys where a recipe gives only a cache fraction."""
    spread: bool = False
    """True if layers get widths of their own where a recipe gives only a cache fraction."""
    refit: bool = False
    """True if output projections are refitted by default."""
    coded: bool = False
    """True if cache rows are coded by default where a recipe gives a cache fraction."""


# Published shares: 64 of 576 numbers (TransMLA), 64 of 320 (CARE). CARE removes RoPE as TransMLA
# does: its release is built on that code.
METHODS = {
    "calibrated": Method(
        rotary="calibrated",
        latent="calibrated",
        rope_share=1 / 3,
        spread=True,
        refit=True,
        coded=True,
    ),
    "mha2mla": Method(rotary="2-norm", latent="svd-joint", rope_share=1 / 5),
    "transmla": Method(rotary="rorope", latent="balanced-pca", rope_share=1 / 9),
    "care": Method(rotary="rorope", latent="whitened", rope_share=1 / 5),
}
