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
    return [free[place] for place in evenly(len(free), count)]


def shared_grid(
    lengths: Sequence[int], window: int, shares: Sequence[int], count: int
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Windows of both kinds on one grid, for when what is calibrated on leaves no other room.

    Args:
        lengths: of each text, tokens.
        window: tokens per window, of both kinds.
        shares: how many windows of each text to calibrate on, at most.
        count: how many windows to hold out, of all texts.

    Returns:
        starts to calibrate on, for each text, and text and start of each held-out window.
    """
    grid = [(text, start) for text, length in enumerate(lengths)
            for start in range(0, length - window + 1, window)]  # fmt: skip
    held_out = [grid[place] for place in evenly(len(grid), count)]
    starts = []
    for text in range(len(lengths)):
        left = [start for owner, start in grid if owner == text and (text, start) not in held_out]
        taken = min(shares[text], len(left))
        starts.append([left[index * len(left) // taken] for index in range(taken)])
    return starts, held_out


def evenly(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` places, or all of them, each in the middle of its share."""
    wanted = min(wanted, count)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]


def _centred(begin: int, end: int, window: int) -> range:
    fitting = max(0, end - begin) // window
    first = begin + (end - begin - fitting * window) // 2
    return range(first, first + fitting * window, window)
