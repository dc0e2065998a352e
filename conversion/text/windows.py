"""Token windows: to calibrate on, held out, and to measure on."""

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
from conversion.text.held_out import held_out_starts, shared_grid
from conversion.text.repeats import with_repeats
from conversion.text.tokens import fingerprint, tokenize
from vllm_mha2mla.config import CalibrationInfo

# Of so many windows one is probed: a window gives as many gradients as it has tokens, and their
# second moment is as wide as all heads together.
EVERY = 3

logger = logging.getLogger(__name__)

# Part of a text's windows that may be taken from calibration.
HELD_OUT_AT_MOST = 0.2
# What windows that repeat their beginning begin with: from a page apart to a paragraph apart.
PARTS = (2, 4, 8)


@dataclass(frozen=True)
class Windows:
    """Token windows of equal length, and where they came from.

    Attributes:
        ids: to calibrate and refit on  # [windows, window], int64
        held_out: of the same texts, to choose on; none of their tokens are in ``ids``, and there
            are none if the texts are too short for that  # [held-out windows, window], int64
        files: names of the texts.
        fingerprint: of ``ids``, with repeats, before any that are measured came first.
        count: how many of ``ids``, the first, attention is measured on; ``None``: all.
    """

    ids: Tensor
    held_out: Tensor
    files: list[str]
    fingerprint: str
    count: int | None = None

    @property
    def measured(self) -> Tensor:
        """What attention is measured on  # [measured windows, window], int64"""
        return self.ids[: self.count]

    def measured_first(self, count: int) -> "Windows":
        """The same with ``count`` windows, spread evenly over the others, to measure on."""
        windows = len(self.ids)
        if count >= windows:
            return self
        chosen = torch.linspace(0, windows - 1, count).long()
        others = torch.ones(windows, dtype=torch.bool)
        others[chosen] = False
        order = torch.cat((chosen, others.nonzero()[:, 0]))
        return replace(self, ids=self.ids[order], count=count)

    def repeated(self, share: float) -> "Windows":
        """The same with repeats in a share of the windows.

        And of every kind of them: those that are probed, the others that attention is measured on,
        and those for refits alone.
        """
        if not share:
            return self
        place, measured = torch.arange(len(self.ids)), len(self.measured)
        probed = (place < measured) & (place % EVERY == 0)
        ids = self.ids.clone()
        for kind in (probed, (place < measured) & ~probed, place >= measured):
            chosen = ids[kind]
            # A single one would be all there is of its kind.
            least = int(len(chosen) > 1)
            ids[kind] = with_repeats(chosen, max(least, round(share * len(chosen))), PARTS)
        return replace(self, ids=ids, fingerprint=fingerprint(ids))

    @property
    def info(self) -> CalibrationInfo:
        """Where they came from, as a checkpoint's provenance says it."""
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
    """About ``tokens`` tokens in windows spread evenly over the files.

    Args:
        tokenizer: the source's tokenizer.
        files: texts; none means the built-in one.
        tokens: how many tokens in all, at least.
        window: tokens per window; a shorter text gives one window of its own length.
        held_out_tokens: how many tokens to hold out, at least: between those windows, or, where
            they leave no room, instead of some of them.

    Raises:
        TextError: a file cannot be used, or there is less than two tokens of text.
    """
    names, texts = read_texts(files, tokenizer)
    tokenised = [tokenize(tokenizer, text) for text in texts]
    lengths = [ids.numel() for ids in tokenised]
    shares = _shares(lengths, window, max(1, ceil_div(tokens, window)))
    starts = [_spread(*each, window) for each in zip(lengths, shares, strict=True)]
    apart = ceil_div(held_out_tokens, window)
    places = held_out_starts(list(zip(lengths, starts, strict=True)), window, apart)
    fitting = sum(length // window for length in lengths)
    if len(places) < apart and HELD_OUT_AT_MOST * fitting >= apart:
        starts, places = shared_grid(lengths, window, shares, apart)
    chosen = [
        ids[start : start + window]
        for ids, taken in zip(tokenised, starts, strict=True)
        for start in taken
    ]
    stacked = torch.stack(chosen)
    length = stacked.shape[1]
    if length < 2:
        raise TextError("calibration text: fewer than two tokens; give more text")
    for name, taken in zip(names, starts, strict=True):
        if not taken:
            logger.warning(
                "%s: not used; it is shorter than a window of %d tokens, or there are more texts "
                "than the %d windows",
                name, window, len(stacked),
            )  # fmt: skip
    return Windows(
        ids=stacked,
        held_out=torch.stack([tokenised[text][at : at + window] for text, at in places])
        if places
        else stacked.new_empty(0, length),
        files=[name for name, taken in zip(names, starts, strict=True) if taken],
        fingerprint=fingerprint(stacked),
    )


def _shares(lengths: Sequence[int], window: int, wanted: int) -> list[int]:
    """How many windows of each text: as equal as their lengths allow, and no more than wanted.

    Where no text has a window's length, one window of the longest, as long as that is.
    """
    room = [length // window for length in lengths]
    if not any(room):
        room[max(range(len(lengths)), key=lengths.__getitem__)] = 1
    shares = [0] * len(lengths)
    left = min(wanted, sum(room))
    # What a short text lacks, the longer ones after it share.
    for done, text in enumerate(sorted(range(len(lengths)), key=room.__getitem__)):
        shares[text] = min(room[text], ceil_div(left, len(lengths) - done))
        left -= shares[text]
    return shares


def _spread(length: int, count: int, window: int) -> list[int]:
    """Starts of at most ``count`` windows without overlap, from a text's first token to its last"""
    last, steps = max(0, length - window), max(1, count - 1)
    return [index * last // steps for index in range(count)]


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, window: int, limit: int | None
) -> Tensor:
    """Consecutive windows of the whole text tokenised once, no overlap  # [windows, window]

    A text shorter than one window is one window of its own length; a shorter rest is dropped.

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
