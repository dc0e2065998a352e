"""The part of a weight file that its fingerprint is made of: all of it would take too long."""

from pathlib import Path

FINGERPRINT_BYTES = 1 << 20


def head_and_tail(path: Path) -> bytes:
    """The first and the last ``FINGERPRINT_BYTES`` of a file; in a short one they overlap."""
    with path.open("rb") as file:
        head = file.read(FINGERPRINT_BYTES)
        file.seek(max(0, path.stat().st_size - FINGERPRINT_BYTES))
        return head + file.read()
