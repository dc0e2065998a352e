"""The releases of vLLM and transformers that this package is tested with.

``make test-matrix`` runs them. pyproject.toml and the documentation repeat the ranges, and a test
compares them. Below a range converted models are refused, because interfaces are missing there.
Above it they are served with a warning: most releases change nothing that is used here, and a
refusal would keep security fixes from users.
"""

import re
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Literal

from vllm_mha2mla.version import __version__

Release = tuple[int, int]


@dataclass(frozen=True)
class Releases:
    """The releases of a package between the oldest and the newest that were tested.

    Attributes:
        package: its name, for pip and for Python.
        oldest: major and minor number of the oldest.
        newest: of the newest.
    """

    package: str
    oldest: Release
    newest: Release

    @property
    def installed(self) -> str:
        """The version that is installed."""
        return str(import_module(self.package).__version__)

    def place(self, version: str) -> Literal["older", "inside", "newer", "unknown"]:
        """Say where a version stands.

        Args:
            version: ``0.32.1+cpu``; of a build without a number (``dev``, ``0.1.dev7``), unknown.
        """
        found = re.match(r"(\d+)\.(\d+)(?!\d|\.?dev)", version)
        if found is None:
            return "unknown"
        release = int(found[1]), int(found[2])
        if release < self.oldest:
            return "older"
        return "newer" if release > self.newest else "inside"

    @property
    def first(self) -> str:
        """The oldest release."""
        return _dotted(self.oldest)

    @property
    def span(self) -> str:
        """The releases, in words."""
        return f"{self.first} to {_dotted(self.newest)}"

    @property
    def range(self) -> str:
        """The releases, for pip."""
        return f">={self.first},<{_dotted((self.newest[0], self.newest[1] + 1))}"

    def refusal(self, version: str) -> str | None:
        """The line that refuses a version that is too old; ``None`` for all others."""
        if self.place(version) != "older":
            return None
        return (
            f"{self.package} {version} is older than {self.first}, the oldest release that "
            f"vllm-mha2mla {__version__} works with; {self.way_out}"
        )

    def warning(self, version: str) -> str | None:
        """The line about a version that was not tested; ``None`` for all others."""
        if self.place(version) not in ("newer", "unknown"):
            return None
        return (
            f"{self.package} {version} has not been tested with vllm-mha2mla {__version__}, as "
            f"{self.span} have; should a converted model fail: {self.way_out}"
        )

    @property
    def way_out(self) -> str:
        """The command that installs a tested release."""
        return f'pip install "{self.package}{self.range}"'


def _dotted(release: Release) -> str:
    return ".".join(map(str, release))


VLLM = Releases("vllm", (0, 30), (0, 32))
# One cache holds the windows of layers that keep their attention and the latents of the others.
VLLM_WITH_KEPT_LAYERS = replace(VLLM, oldest=(0, 32))
TRANSFORMERS = Releases("transformers", (5, 16), (5, 19))
TESTED = (VLLM, TRANSFORMERS)


def untested() -> list[str]:
    """A line about every installed package whose version was not tested, and is not too old."""
    lines = (tested.warning(tested.installed) for tested in TESTED)
    return [line for line in lines if line is not None]
