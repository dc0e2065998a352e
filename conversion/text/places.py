"""Places of windows in texts: those to calibrate on, and those held out to choose on."""

from collections.abc import Sequence

from conversion.runtime.numbers import ceil_div

# Share of the texts' windows that may be held out at the expense of calibration.
HELD_OUT_AT_MOST = 0.2


def place_windows(
    lengths: Sequence[int], window: int, count: int, held_out: int
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Place windows without overlap, spread evenly over the texts.

    Held-out windows lie between the calibration windows. If these leave too little room, held-out
    windows take the place of some, up to ``HELD_OUT_AT_MOST`` of the texts.

    Args:
        lengths: tokens of each text.
        window: tokens per window of either kind.
        count: number of calibration windows wanted; fewer if the texts are shorter.
        held_out: number of held-out windows wanted; fewer, or none, likewise.

    Returns:
        starts of the calibration windows of each text; index of the text and start of each held-out
        window.
    """
    shares = window_shares(lengths, window, count)
    starts = [spread_starts(*each, window) for each in zip(lengths, shares, strict=True)]
    places = held_out_starts(list(zip(lengths, starts, strict=True)), window, held_out)
    fitting = sum(length // window for length in lengths)
    if len(places) < held_out and HELD_OUT_AT_MOST * fitting >= held_out:
        return shared_grid(lengths, window, shares, held_out)
    return starts, places


def window_shares(lengths: Sequence[int], window: int, count: int) -> list[int]:
    """Number of windows of each text: as equal as their lengths allow, ``count`` in all.

    If no text is as long as a window, the longest text is the only window.
    """
    room = [length // window for length in lengths]
    if not any(room):
        room[max(range(len(lengths)), key=lengths.__getitem__)] = 1
    shares = [0] * len(lengths)
    left = min(count, sum(room))
    # Shortest first, so that the longer ones share what it lacks.
    for done, text in enumerate(sorted(range(len(lengths)), key=room.__getitem__)):
        shares[text] = min(room[text], ceil_div(left, len(lengths) - done))
        left -= shares[text]
    return shares


def spread_starts(length: int, count: int, window: int) -> list[int]:
    """Starts of ``count`` windows, evenly from a text's first token to its last"""
    last, steps = max(0, length - window), max(1, count - 1)
    return [index * last // steps for index in range(count)]


def held_out_starts(
    texts: Sequence[tuple[int, Sequence[int]]], window: int, count: int
) -> list[tuple[int, int]]:
    """Find room for held-out windows between the calibration windows, spread evenly.

    The windows of a free span stand in its middle, away from the calibration windows around it.

    Args:
        texts: for each text its length and the starts of its calibration windows, ascending, in
            tokens.
        window: tokens per window of either kind.
        count: number of windows wanted.

    Returns:
        index of the text and start of each window; fewer than ``count`` if there is no more room.
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
    """Put windows of both kinds on one grid; held-out windows come first.

    Args:
        lengths: tokens of each text.
        window: tokens per window of either kind.
        shares: number of calibration windows wanted of each text.
        count: number of held-out windows wanted, over all texts.

    Returns:
        as for :func:`place_windows`.
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
    """Choose ``wanted`` of ``count`` places, or all of them, each in the middle of its share."""
    wanted = min(wanted, count)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]


def _centred(begin: int, end: int, window: int) -> range:
    fitting = max(0, end - begin) // window
    first = begin + (end - begin - fitting * window) // 2
    return range(first, first + fitting * window, window)
