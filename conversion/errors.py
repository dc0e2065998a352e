"""The converter's errors, by what went wrong.

Every message is one line that names the thing and the way out.
"""

from vllm_mha2mla.errors import MHA2MLAError


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class SourceError(MHA2MLAError):
    """An original cannot be read or converted, or is not the one a checkpoint was made from."""


class TextError(MHA2MLAError):
    """A text or a file of records cannot be used, or the tokenizer is another model's."""


class StatisticsError(MHA2MLAError):
    """Stored statistics are damaged, or of another model or text."""


class RecipeError(MHA2MLAError):
    """A recipe cannot be read, or asks for something impossible."""


class UsageError(MHA2MLAError):
    """An option of the command line, or of its launch, cannot be used."""


class MissingExtraError(MHA2MLAError):
    """An optional package is not installed."""


class OutputError(MHA2MLAError):
    """A file or folder cannot be written, or may not be replaced."""


class OffloadError(MHA2MLAError):
    """The calibration activations cannot be kept where they should be."""


class DeviceMemoryError(MHA2MLAError):
    """A device, or the process, has too little memory for what was asked."""


class TrainingError(MHA2MLAError):
    """A training cannot start or go on: memory, another run's checkpoints, NaN or infinity."""


class ServerError(MHA2MLAError):
    """vLLM did not start, or died.

    Args:
        message: what happened, one line.
        tail: the last lines it wrote.
    """

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail
