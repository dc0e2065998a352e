"""Recipes that come with the package: ``--recipe half``."""

from pathlib import Path

FOLDER = Path(__file__).parent


def presets() -> list[str]:
    """Names of the presets: those by fraction, largest first, then the others."""
    order = ["quick", "half", "third", "quarter", "eighth"]
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return [name for name in order if name in names] + [n for n in names if n not in order]
