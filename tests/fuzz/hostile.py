"""Values that nobody expects in a config, an index, a header or a recipe."""

import json
from random import Random
from typing import Any

SIZES = (0, 1, -1, 2, 3, 7, 16, 2**31, 2**32 + 1, 2**63 - 1, 2**64, 10**30, -(2**63))
NUMBERS = (0.5, -0.0, 1e-30, 1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    *("", "4", "four", "None", "true", "../outside/secret.txt", "/etc/passwd", "[bold]x[/bold]"),
    *("a\nb", "\x1b[31m", "\u202egnp", "x" * 100_000, "\x00", "silu", "float8_e4m3fn"),
)
THINGS: tuple[Any, ...] = (None, True, False, [], [1], [None], {}, {"a": {"b": []}}, ["x"] * 1000)


def value(rng: Random, old: Any = None) -> Any:
    """A hostile value; sometimes close to the old one."""
    if rng.random() < 0.3 and isinstance(old, int | float) and not isinstance(old, bool):
        return rng.choice((old + 1, old - 1, old * 2, -old, str(old), float(old), [old], old / 3))
    return rng.choice(rng.choice((SIZES, NUMBERS, TEXTS, THINGS)))


def nested(depth: int) -> str:
    """JSON text of lists in lists."""
    return "[" * depth + "]" * depth


def with_duplicate(text: str, key: str, other: Any) -> str:
    """JSON text of an object with one key once more at its end."""
    return f"{text.rstrip()[:-1]}, {json.dumps(key)}: {json.dumps(other)}}}"
