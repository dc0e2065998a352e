"""The versions that made a checkpoint."""

import importlib.metadata
import platform

from vllm_mha2mla.version import __version__


def versions(*packages: str) -> dict[str, str]:
    """The versions of this package, of Python and of the packages named."""
    others = {package: importlib.metadata.version(package) for package in packages}
    return {"vllm-mha2mla": __version__, "python": platform.python_version()} | others
