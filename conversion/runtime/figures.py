"""The common look of all plots, and their files' bytes. Imports matplotlib."""

import io

from matplotlib.figure import Figure

ORIGINAL_COLOUR = "black"
WIDTH, HEIGHT = 7.5, 4.0  # inches


def image(figure: Figure, kind: str) -> bytes:
    """Render a plot as ``svg`` or ``png``."""
    buffer = io.BytesIO()
    # Without a date, the same plot gives the same bytes.
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, bbox_inches="tight", dpi=120, metadata=metadata)
    return buffer.getvalue()
