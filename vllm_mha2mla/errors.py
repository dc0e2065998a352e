"""Errors a user can act on: one line that names the thing and the way out."""

LONGEST = 2000
"""Characters of a message that are shown."""


class MHA2MLAError(Exception):
    """Base of every error this project raises on purpose.

    The command line prints the message as one line and exits with code 2. What a message quotes of
    a file may hold anything: it is shown on one line, and not whole where it is endless.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


def _one_line(text: str) -> str:
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(shown) <= LONGEST:
        return shown
    half = LONGEST // 2 - 3
    return f"{shown[:half]} ... {shown[-half:]}"


class CheckpointError(MHA2MLAError):
    """A converted checkpoint is unreadable, incomplete or of an unknown format version."""


class UnsupportedEngineError(MHA2MLAError, ValueError):
    """The engine was asked for something the latent attention layer cannot do.

    Also a ``ValueError``, because vLLM's configuration reports those as the user's mistakes.
    """


class EngineMemoryError(MHA2MLAError, ValueError):
    """Not enough memory is free for the engine to start.

    Also a ``ValueError``, for the same reason.
    """


class KernelBuildError(MHA2MLAError):
    """The CPU kernel cannot be compiled on this machine; PyTorch computes instead."""


class SelfCheckError(MHA2MLAError, RuntimeError):
    """A layer computed something else than its reference when the engine started."""
