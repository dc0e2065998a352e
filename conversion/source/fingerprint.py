"""The part of a weight file that its fingerprint is made of: all of it would take too long."""

from pathlib import Path

END_BYTES = 1 << 20
# Evenly spread over the rest: an adapter that is merged into some matrices leaves both ends.
PIECES, PIECE_BYTES = 512, 4096


def ends_and_pieces(path: Path) -> bytes:
    """The first and last ``END_BYTES`` of a file, and pieces of what is between.

    In a short file the ends overlap, and nothing is between.
    """
    size = path.stat().st_size
    between = max(0, size - 2 * END_BYTES)
    with path.open("rb") as file:
        parts = [file.read(END_BYTES)]
        file.seek(max(0, size - END_BYTES))
        parts.append(file.read())
        for piece in range(PIECES if between else 0):
            file.seek(END_BYTES + between * piece // PIECES)
            parts.append(file.read(PIECE_BYTES))
    return b"".join(parts)
