"""Token windows of text to measure on."""

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.calibration.text import tokenize
from conversion.errors import CalibrationError


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, window: int, limit: int | None
) -> Tensor:
    """Consecutive windows of the whole text tokenised once, no overlap  # [windows, window]

    A text shorter than one window is one window of its own length; a shorter rest is dropped.

    Raises:
        CalibrationError: fewer than two tokens of text.
    """
    ids = tokenize(tokenizer, text)
    window = min(window, ids.numel())
    if window < 2:
        raise CalibrationError("evaluation text: fewer than two tokens; give more text")
    count = ids.numel() // window
    if limit is not None:
        count = min(count, limit)
    return ids[: count * window].view(count, window)
