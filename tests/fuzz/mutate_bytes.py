"""Damage to the bytes of any file."""

from pathlib import Path
from random import Random

# What a file may be damaged at.
HEAD = 4096


def damage(rng: Random, folder: Path) -> str:
    """Damage one file of a folder; returns how."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    # Small files are as likely as the weights.
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    way = rng.choice(WAYS)
    done = way(rng, data)
    path.write_bytes(data)
    return f"{path.name}: {done}"


def _flip(rng: Random, data: bytearray) -> str:
    places = [_place(rng, data) for _ in range(rng.choice((1, 1, 1, 2, 8)))]
    bits = [rng.randrange(8) for _ in places]
    for place, bit in zip(places, bits, strict=True):
        if data:
            data[place] ^= 1 << bit
    return f"bits {bits} of bytes {places} flipped"


def _truncate(rng: Random, data: bytearray) -> str:
    size = rng.choice((0, 1, 7, 8, 9, rng.randrange(len(data) + 1), max(0, len(data) - 1)))
    del data[size:]
    return f"truncated to {size}"


def _extend(rng: Random, data: bytearray) -> str:
    more = rng.randbytes(rng.choice((1, 8, 100, 5000)))
    data.extend(more)
    return f"{len(more)} bytes appended"


def _zero(rng: Random, data: bytearray) -> str:
    place, size = _place(rng, data), rng.choice((1, 8, 64, 4096))
    data[place : place + size] = bytes(len(data[place : place + size]))
    return f"{size} bytes from {place} are zero"


def _garbage(rng: Random, data: bytearray) -> str:
    place, size = _place(rng, data), rng.choice((1, 4, 8, 64))
    data[place : place + size] = rng.randbytes(len(data[place : place + size]))
    return f"{size} bytes from {place} are random"


def _drop(rng: Random, data: bytearray) -> str:
    place, size = _place(rng, data), rng.choice((1, 4, 8, 64))
    del data[place : place + size]
    return f"{size} bytes from {place} are missing"


def _place(rng: Random, data: bytearray) -> int:
    """A place in the data, often in its head, where the structure is."""
    if not data:
        return 0
    return rng.randrange(min(HEAD, len(data)) if rng.random() < 0.6 else len(data))


WAYS = (_flip, _flip, _flip, _truncate, _extend, _zero, _garbage, _drop)
