"""The text to heal on: files packed into windows, some of them held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import CalibrationError
from conversion.healing.recipe import HealingRecipe
from conversion.text.documents import read_texts
from conversion.text.held_out import evenly
from conversion.text.repeats import with_repeats
from conversion.text.tokens import fingerprint, tokenize


@dataclass(frozen=True)
class Packed:
    """Token windows of equal length.

    Attributes:
        ids: to train on  # [windows, window], int64
        held_out: of the same texts, never trained on  # [held-out windows, window], int64
        files: names of the texts.
        fingerprint: of both.
    """

    ids: Tensor
    held_out: Tensor
    files: list[str]
    fingerprint: str


def packed_windows(
    tokenizer: PreTrainedTokenizerBase, files: Sequence[Path], recipe: HealingRecipe
) -> Packed:
    """Files end to end, cut into windows; of more windows than asked for, evenly spread ones.

    Args:
        tokenizer: the model's.
        files: texts, ``.txt`` or ``.jsonl``; records with ``messages`` go through the model's chat
            template. None means the built-in one.
        recipe: how many tokens to train on, at most, in windows of how many; how many to hold out,
            of all parts of the text and at most a fifth of it; which share of the others repeats.

    Raises:
        CalibrationError: a file cannot be used, or together they have not one window.
    """
    end, window = tokenizer.eos_token_id, recipe.window
    names, texts = read_texts(files, tokenizer)
    parts: list[Tensor] = []  # each [tokens]
    for text in texts:
        parts.append(tokenize(tokenizer, text))
        if end is not None:
            parts.append(torch.tensor([end]))
    ids = torch.cat(parts)  # [tokens]
    count = ids.numel() // window
    if count < 1:
        raise CalibrationError(
            f"{', '.join(names)}: {ids.numel()} tokens are less than one window of {window}; give "
            "more text"
        )
    windows = ids[: count * window].view(count, window)  # [windows, window]
    apart = -(-recipe.held_out_tokens // window)
    held = evenly(count, min(apart, count // 5))
    others = torch.ones(count, dtype=torch.bool)  # [windows]
    others[held] = False
    train = windows[others]
    train = train[evenly(len(train), max(1, recipe.tokens // window))]
    train = with_repeats(train, round(recipe.repeats * len(train)))
    held_out = windows[held]
    return Packed(train, held_out, names, fingerprint(train, held_out))


def in_order(ids: Tensor, wanted: int, seed: int) -> Tensor:
    """So many windows in the order they are trained on: all in a random order, then all again.

    One sequence for the whole training, whatever a step takes of it: every step is whole, and a
    step that is done is done whatever comes after an interruption.

    Args:
        ids: windows  # [windows, window]
        wanted: how many.
        seed: of the order.

    Returns:
        numbers of windows  # [wanted]
    """
    generator = torch.Generator().manual_seed(seed)
    passes = -(-wanted // len(ids))
    orders = [torch.randperm(len(ids), generator=generator) for _ in range(passes)]
    return torch.cat(orders)[:wanted]
