"""Token windows of a text: to calibrate on, to choose on, and to evaluate on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import TextError
from conversion.runtime.numbers import ceil_div
from conversion.text.documents import read_texts
from conversion.text.places import place_windows
from conversion.text.repeats import with_repeats
from conversion.text.tokens import fingerprint, tokenize
from vllm_mha2mla.config import CalibrationInfo

# One of so many windows is probed for gradients: a window gives one for each of its tokens, and
# their second moment is as wide as all heads together.
EVERY = 3
# Parts of a window that are repeated, as ``with_repeats`` counts them: a page to a paragraph.
PARTS = (2, 4, 8)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Windows:
    """Token windows of equal length, and the texts they came from.

    Attributes:
        ids: windows to calibrate and refit on  # [windows, window], int64
        held_out: windows of the same texts to choose on. They share no token with ``ids``. There
            are none if the texts are too short  # [held-out windows, window], int64
        files: names of the texts.
        fingerprint: SHA-256 of the windows as they were cut, or of ``ids`` if these have repeats.
        count: number of windows, the first of ``ids``, that attention is measured on; ``None`` for
            all.
    """

    ids: Tensor
    held_out: Tensor
    files: list[str]
    fingerprint: str
    count: int | None = None

    @property
    def measured(self) -> Tensor:
        """The windows that attention is measured on  # [measured windows, window], int64"""
        return self.ids[: self.count]

    def measured_first(self, count: int) -> "Windows":
        """Move ``count`` evenly spread windows to the front, and measure attention on these."""
        windows = len(self.ids)
        if count >= windows:
            return self
        chosen = torch.linspace(0, windows - 1, count).long()
        others = torch.ones(windows, dtype=torch.bool)
        others[chosen] = False
        order = torch.cat((chosen, others.nonzero()[:, 0]))
        return replace(self, ids=self.ids[order], count=count)

    def repeated(self, share: float) -> "Windows":
        """Fill a share of the windows with repeats of their beginning.

        Every kind of window gets its share: those that are probed, the others that attention is
        measured on, and those for refits alone.
        """
        if not share:
            return self
        place, measured = torch.arange(len(self.ids)), len(self.measured)
        probed = (place < measured) & (place % EVERY == 0)
        ids = self.ids.clone()
        for kind in (probed, (place < measured) & ~probed, place >= measured):
            chosen = ids[kind]
            # A single window would leave none of its kind without repeats.
            least = int(len(chosen) > 1)
            ids[kind] = with_repeats(chosen, max(least, round(share * len(chosen))), PARTS)
        return replace(self, ids=ids, fingerprint=fingerprint(ids))

    @property
    def info(self) -> CalibrationInfo:
        """The texts and the number of tokens, for a checkpoint's provenance."""
        return CalibrationInfo(
            files=self.files,
            fingerprint=self.fingerprint,
            tokens=self.ids.numel(),
            window=self.ids.shape[1],
        )


def calibration_windows(
    tokenizer: PreTrainedTokenizerBase,
    files: Sequence[Path],
    tokens: int,
    window: int,
    held_out_tokens: int = 0,
) -> Windows:
    """Cut at least ``tokens`` tokens into windows spread evenly over the files.

    Args:
        tokenizer: the source's tokenizer.
        files: texts; without any, the built-in one.
        tokens: number of tokens wanted; fewer if the texts are shorter.
        window: tokens per window; a shorter text gives one window of its own length.
        held_out_tokens: number of tokens to hold out: between those windows, or instead of some of
            them if they leave no room.

    Raises:
        TextError: a file cannot be used, or there are fewer than two tokens of text.
    """
    names, texts = read_texts(files, tokenizer)
    tokenised = [tokenize(tokenizer, text) for text in texts]
    starts, held_out = place_windows(
        [ids.numel() for ids in tokenised],
        window,
        count=max(1, ceil_div(tokens, window)),
        held_out=ceil_div(held_out_tokens, window),
    )

    def cut(places: Sequence[tuple[int, int]]) -> Tensor:
        return torch.stack([tokenised[text][start : start + window] for text, start in places])

    ids = cut([(text, start) for text, taken in enumerate(starts) for start in taken])
    length = ids.shape[1]
    if length < 2:
        raise TextError("calibration text: fewer than two tokens; give more text")
    for name, taken in zip(names, starts, strict=True):
        if not taken:
            logger.warning(
                "%s: not used; it is shorter than a window of %d tokens, or there are more texts "
                "than the %d windows",
                name, window, len(ids),
            )  # fmt: skip
    return Windows(
        ids=ids,
        held_out=cut(held_out) if held_out else ids.new_empty(0, length),
        files=[name for name, taken in zip(names, starts, strict=True) if taken],
        fingerprint=fingerprint(ids),
    )


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, window: int, limit: int | None
) -> Tensor:
    """Cut a text, tokenised as a whole, into consecutive windows without overlap.

    A text shorter than one window is one window of its own length; a shorter rest is dropped.

    Args:
        tokenizer: the model's tokenizer.
        text: the whole text.
        window: tokens per window.
        limit: number of windows at most, from the beginning; ``None`` for all.

    Returns:
        # [windows, window], int64

    Raises:
        TextError: fewer than two tokens of text.
    """
    ids = tokenize(tokenizer, text)
    window = min(window, ids.numel())
    if window < 2:
        raise TextError("evaluation text: fewer than two tokens; give more text")
    count = ids.numel() // window
    if limit is not None:
        count = min(count, limit)
    return ids[: count * window].view(count, window)
