"""Prompts as tokens: a user's message in the tokenizer's chat template, where it has one."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tensor:
    """Turn a prompt into token ids  # [tokens], int64"""
    if getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": prompt}]
        # The template brings its own special tokens.
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = tokenizer(prompt, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer, by the tokenizer and the model's config."""
    stop: set[int] = set()
    for ids in (tokenizer.eos_token_id, model.config.eos_token_id):
        stop.update([ids] if isinstance(ids, int) else ids or [])
    return stop
