"""Greedy answers to several prompts at once: 16 tokens cost a CPU little more than one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from conversion.runtime.progress import Progress

BATCH = 16


@torch.no_grad()
def greedy_answers(
    model: Any,
    prompts: Sequence[Tensor],
    stop: set[int],
    limit: int,
    progress: Progress,
    description: str,
    batch: int = BATCH,
) -> list[list[int]]:
    """Decode greedily after every prompt; the checkpoint's generation config has no influence.

    Args:
        model: a transformers causal language model.
        prompts: token ids  # [tokens] each
        stop: token ids that end an answer; the one that does is part of it.
        limit: largest number of tokens of an answer.
        progress: shows one step per token of a batch.
        description: label of the work.
        batch: prompts at once.

    Returns:
        token ids of every answer.
    """
    # Prompts of similar length share a batch: little padding.
    order = sorted(range(len(prompts)), key=lambda index: prompts[index].numel())
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    answers: dict[int, list[int]] = {}
    with progress.task(description, limit * len(batches)) as advance:
        for indices in batches:
            generated = _batch(model, [prompts[index] for index in indices], stop, limit, advance)
            answers.update(zip(indices, generated, strict=True))
    return [answers[index] for index in range(len(prompts))]


def _batch(
    model: Any, prompts: list[Tensor], stop: set[int], limit: int, advance: Any
) -> list[list[int]]:
    count = len(prompts)
    lengths = torch.tensor([ids.numel() for ids in prompts])
    width = int(lengths.max())
    ids = torch.zeros(count, width, dtype=torch.long)
    # Padded on the left, so that all answers begin in the same column.
    mask = torch.arange(width) >= (width - lengths)[:, None]  # [count, width]
    for row, prompt in enumerate(prompts):
        ids[row, width - prompt.numel() :] = prompt
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [False] * count
    for _ in range(limit):
        output = model(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions.to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        ids = output.logits[:, -1].argmax(-1, keepdim=True).cpu()  # [count, 1]
        for row, token in enumerate(ids[:, 0].tolist()):
            if not ended[row]:
                answers[row].append(token)
                ended[row] = token in stop
        advance()
        if all(ended):
            break
        mask = torch.cat((mask, mask.new_ones(count, 1)), dim=1)
        positions = positions[:, -1:] + 1
    return answers
