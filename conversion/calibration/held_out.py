"""Windows of the calibration text that calibration does not see: what choices are made on."""

from collections.abc import Sequence


def held_out_starts(
    texts: Sequence[tuple[int, Sequence[int]]], window: int, count: int
) -> list[tuple[int, int]]:
    """Where windows fit between the calibration windows, spread evenly over what is free.

    A free span's windows stand in its middle, away from the calibration windows around it.

    Args:
        texts: for each text its length and where its calibration windows start, ascending; tokens.
        window: tokens per window, of both kinds.
        count: how many windows at most.

    Returns:
        text and start of each; fewer than ``count``, or none, if there is no more room.
    """
    free = [
        (text, start)
        for text, (length, taken) in enumerate(texts)
        for begin, end in zip(
            (0, *(start + window for start in taken)), (*taken, length), strict=True
        )
        for start in _centred(begin, end, window)
    ]
    count = min(count, len(free))
    return [free[(2 * index + 1) * len(free) // (2 * count)] for index in range(count)]


def _centred(begin: int, end: int, window: int) -> range:
    fitting = max(0, end - begin) // window
    first = begin + (end - begin - fitting * window) // 2
    return range(first, first + fitting * window, window)
