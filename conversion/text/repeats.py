"""Text that repeats itself, for attention to certain earlier tokens."""

from collections.abc import Sequence

from torch import Tensor

from conversion.runtime.numbers import ceil_div
from conversion.text.held_out import evenly


def with_repeats(ids: Tensor, count: int, parts: Sequence[int] = (2,)) -> Tensor:
    """The same windows, so many of them with nothing but their beginning, again and again.

    A small cache hurts attention to one certain earlier token most, and in text few predictions
    show it. Where text repeats itself, all do.

    Args:
        ids: windows  # [windows, window]
        count: how many; they are spread evenly.
        parts: the beginning of a window is one of so many parts; windows take turns.
    """
    chosen = evenly(len(ids), count)
    repeated = ids.clone()
    for turn, index in enumerate(chosen):
        part = max(1, ids.shape[1] // parts[turn % len(parts)])
        times = ceil_div(ids.shape[1], part)
        repeated[index] = ids[index, :part].repeat(times)[: ids.shape[1]]
    return repeated
