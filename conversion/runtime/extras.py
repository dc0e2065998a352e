"""What reports and plots want and a conversion does not: the extra ``eval``."""

from importlib.util import find_spec

from conversion.errors import MissingExtraError


def require(module: str, purpose: str) -> None:
    """Make sure that a module of the extra is there, before any long work.

    Args:
        module: its import name.
        purpose: the option that wants it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec(module) is None:
        raise MissingExtraError(
            f'{purpose} needs {module}; install with: pip install "vllm-mha2mla[eval]"'
        )
