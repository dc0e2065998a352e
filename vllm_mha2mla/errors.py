"""Errors a user can act on: one line that names the thing and the way out."""


class MHA2MLAError(Exception):
    """Base of every error this project raises on purpose.

    The command line prints the message as one line and exits with code 2.
    """


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
