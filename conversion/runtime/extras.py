"""Optional packages: the extra ``eval``, for reports and plots."""

from importlib.util import find_spec

from conversion.errors import MissingExtraError


def require(module: str, purpose: str) -> None:
    """Make sure that a module of the extra is installed, before any long work.

    Args:
        module: the module's import name.
        purpose: the option that needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec(module) is None:
        raise MissingExtraError(
            f'{purpose} needs {module}; install with: pip install "vllm-mha2mla[eval]"'
        )
