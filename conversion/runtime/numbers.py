"""Integers: division that rounds up, and ranges in words."""

from collections.abc import Sequence


def ceil_div(amount: int, size: int) -> int:
    """The number of pieces of at most ``size`` that hold ``amount``."""
    return -(-amount // size)


def span(values: Sequence[int]) -> str:
    """The smallest and the largest value in words; one number if they are equal."""
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"
