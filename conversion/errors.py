"""The converter's errors; every message is one line that names the thing and the way out."""

from vllm_mha2mla.errors import MHA2MLAError


def first_line(error: BaseException) -> str:
    """What an error of a library says, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class SourceError(MHA2MLAError):
    """The source checkpoint cannot be read or converted."""


class CalibrationError(MHA2MLAError):
    """The calibration or evaluation text cannot be used."""


class RecipeError(MHA2MLAError):
    """A recipe or an option asks for something impossible."""


class OutputError(MHA2MLAError):
    """The output cannot be written."""


class EvaluationError(MHA2MLAError):
    """What to measure, or where to write it, cannot be used."""


class OffloadError(MHA2MLAError):
    """The calibration activations cannot be kept where they should be."""


class ServerError(MHA2MLAError):
    """vLLM did not start, or died.

    Args:
        message: what happened, one line.
        tail: the last lines it wrote.
    """

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


class BenchError(MHA2MLAError):
    """What to compare in vLLM, or how, cannot be used."""


class HealingError(MHA2MLAError):
    """A healing cannot start, or had to stop."""
