"""The text to heal on: files packed into windows, some of them held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import TextError
from conversion.healing.recipe import HealingRecipe
from conversion.runtime.numbers import ceil_div
from conversion.text.documents import read_texts
from conversion.text.places import evenly
from conversion.text.repeats import with_repeats
from conversion.text.tokens import fingerprint, tokenize


@dataclass(frozen=True)
class HealingText:
    """Token windows of equal length.

    Attributes:
        ids: windows to train on  # [windows, window], int64
        held_out: windows of the same texts, never trained on  # [held-out windows, window], int64
        files: names of the texts.
        fingerprint: fingerprint of both kinds of windows.
    """

    ids: Tensor
    held_out: Tensor
    files: list[str]
    fingerprint: str


def packed_windows(
    tokenizer: PreTrainedTokenizerBase, files: Sequence[Path], recipe: HealingRecipe
) -> HealingText:
    """Join files end to end, cut them into windows, and hold some of these out.

    Held-out windows come from all parts of the text and are at most a fifth of it. If more windows
    are left than ``recipe.tokens`` asks for, evenly spread ones are taken.

    Args:
        tokenizer: the model's.
        files: ``.txt`` or ``.jsonl``; records with ``messages`` go through the model's chat
            template. An empty sequence means the built-in text.
        recipe: ``tokens``, ``window``, ``held_out_tokens`` and ``repeats``.

    Raises:
        TextError: a file cannot be used, or together they are shorter than one window.
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
        raise TextError(
            f"{', '.join(names)}: {ids.numel()} tokens are less than one window of {window}; give "
            "more text"
        )
    windows = ids[: count * window].view(count, window)  # [windows, window]
    held_out_count = ceil_div(recipe.held_out_tokens, window)
    held = evenly(count, min(held_out_count, count // 5))
    others = torch.ones(count, dtype=torch.bool)  # [windows]
    others[held] = False
    train = windows[others]
    train = train[evenly(len(train), max(1, recipe.tokens // window))]
    train = with_repeats(train, round(recipe.repeats * len(train)))
    held_out = windows[held]
    return HealingText(train, held_out, names, fingerprint(train, held_out))


def training_order(ids: Tensor, count: int, seed: int) -> Tensor:
    """Order ``count`` windows for training: all in a random order, then all in another.

    The order is fixed for the whole training, however many windows a step takes. A resumed run
    therefore goes on with exactly the windows that the interrupted one had left.

    Args:
        ids: windows  # [windows, window]
        count: number of windows to train on, repeats included.
        seed: seed of the orders.

    Returns:
        indices of windows  # [count]
    """
    generator = torch.Generator().manual_seed(seed)
    passes = ceil_div(count, len(ids))
    orders = [torch.randperm(len(ids), generator=generator) for _ in range(passes)]
    return torch.cat(orders)[:count]
