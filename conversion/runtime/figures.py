"""Figures alike: sizes, colours, and their bytes. Imports matplotlib."""

import io

from matplotlib.figure import Figure

ORIGINAL_COLOUR = "black"
WIDTH, HEIGHT = 7.5, 4.0  # inches


def image(figure: Figure, kind: str) -> bytes:
    """A plot as ``svg`` or ``png``."""
    buffer = io.BytesIO()
    # No date: the same figures give the same file.
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, bbox_inches="tight", dpi=120, metadata=metadata)
    return buffer.getvalue()
