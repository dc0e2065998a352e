"""Windows that repeat their own beginning, which train attention to single earlier tokens."""

from collections.abc import Sequence

from torch import Tensor

from conversion.runtime.numbers import ceil_div
from conversion.text.places import evenly


def with_repeats(ids: Tensor, count: int, parts: Sequence[int] = (2,)) -> Tensor:
    """Fill some of the windows with repeats of their beginning.

    A small cache hurts attention to one particular earlier token most. Few predictions in running
    text depend on that; where text repeats itself, all do.

    Args:
        ids: windows  # [windows, window]
        count: number of windows to fill, spread evenly.
        parts: the beginning is one half of a window for 2, a quarter for 4; windows take turns.

    Returns:
        # [windows, window]
    """
    chosen = evenly(len(ids), count)
    repeated = ids.clone()
    for turn, index in enumerate(chosen):
        part = max(1, ids.shape[1] // parts[turn % len(parts)])
        times = ceil_div(ids.shape[1], part)
        repeated[index] = ids[index, :part].repeat(times)[: ids.shape[1]]
    return repeated
