"""Widths of cached rows that are fast where a checkpoint is served.

CPU kernels read rows of any width. On GPUs FlashAttention reads rows of at most 256 numbers, in
steps of 8, and on Hopper rows whose 64 rotary numbers it takes beside a wider latent.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Target = Literal["any", "cuda"]

# On GPUs: every multiple of the step up to the widest narrow row, and these, as latent and rotary
# numbers.
STEP, NARROW = 8, 256
WIDE = ((256, 64), (512, 64))
OFFERED = f"multiples of {STEP} up to {NARROW}, and " + " and ".join(
    f"{rank + rope} ({rank} + {rope})" for rank, rope in WIDE
)


def is_offered(rank: "int | Tensor", rope: "int | Tensor", target: Target) -> "bool | Tensor":
    """Tell whether rows of these widths are fast there.

    Args:
        rank: latent numbers, any shape  # [...]
        rope: rotary numbers, broadcastable against it  # [...]
        target: where they are to be fast.

    Returns:
        as many answers  # [...]
    """
    width = rank + rope
    offered = width > 0
    if target == "any":
        return offered
    offered = offered & (width % STEP == 0) & (width <= NARROW)
    for wide_rank, wide_rope in WIDE:
        offered = offered | ((rank == wide_rank) & (rope == wide_rope))
    return offered


def wide_within(width: int, kv_dim: int, step: int) -> tuple[int, int] | None:
    """The widest of the wide rows for GPUs that a source and its rotary strategy can have.

    Args:
        width: the most numbers per token and layer.
        kv_dim: numbers of the source's keys.
        step: what the rotary strategy takes multiples of.

    Returns:
        latent and rotary numbers.
    """
    fitting = (
        (rank, rope)
        for rank, rope in WIDE
        if rank + rope <= width and rank <= 2 * kv_dim and rope <= kv_dim and rope % step == 0
    )
    return max(fitting, key=sum, default=None)
