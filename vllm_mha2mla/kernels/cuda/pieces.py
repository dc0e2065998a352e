"""The pieces of a coded row that are decoded one after another.

Triton works on powers of two, and a thread's registers hold no whole wide row.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pieces:
    """The pieces of a coded row; their widths in columns are powers of two.

    Attributes:
        count: pieces of the latent part.
        width: of each of these.
        half: width of each half of the rotary part, which is a piece; 0 where there is none.
    """

    count: int
    width: int
    half: int

    @property
    def latent(self) -> int:
        """Columns of the latent part, padding included."""
        return self.count * self.width

    @property
    def row(self) -> int:
        """Columns of a row, padding included."""
        return self.latent + 2 * self.half


def pieces_of(rank: int, rope: int) -> Pieces:
    """Split a row into pieces of the width that pads least: 64, which matrix instructions want."""
    width = 64 if (rank - 1) % 128 < 64 else 128
    half = max(16, 1 << (rope // 2 - 1).bit_length()) if rope else 0
    return Pieces(-(-rank // width), width, half)
