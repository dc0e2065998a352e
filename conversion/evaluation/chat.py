"""Agreement with the original in a chat, where small losses show first.

The original answers questions greedily. Another model is then asked at every token of these
answers: what would it say (top-1 agreement), and how far are its predictions from the original's
(KL)? It also answers by itself, and an answer that goes round in circles is counted.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.evaluation.batched import greedy_answers
from conversion.evaluation.chat_questions import Chat
from conversion.evaluation.prompts import stop_tokens
from conversion.evaluation.results import ChatFigures
from conversion.runtime.progress import Progress

# An answer loops if a sequence of so many tokens occurs so many times.
LOOP_TOKENS, LOOP_TIMES = 8, 4


@dataclass(frozen=True)
class ChatReference:
    """The original's answers.

    Attributes:
        answers: token ids of every answer  # [tokens] each
        log_probs: the original's predictions of its tokens, in float16 on the CPU, which for an
            answer of 160 tokens and a vocabulary of 50,000 takes 16 MB  # [tokens, vocabulary] each
    """

    answers: list[Tensor]
    log_probs: list[Tensor]


@dataclass(frozen=True)
class ChatMeasured:
    """One model in the chat.

    Attributes:
        agreement: share of the answers' tokens that it would say too.
        kl: mean KL of its predictions from the original's, nats per token.
        loops: share of its own answers that loop.
    """

    agreement: float
    kl: float
    loops: float


def chat_reference(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    progress: Progress,
    label: str,
) -> ChatReference:
    """Let the original answer, and keep its predictions.

    Args:
        model: the original.
        tokenizer: its tokenizer.
        chat: the questions.
        progress: shows the answers, then their predictions.
        label: name of the model.
    """
    answers = [torch.tensor(ids) for ids in _answers(model, tokenizer, chat, progress, label)]
    predicted = _predictions(model, chat, answers, progress, label)
    return ChatReference(answers, [log_probs.half() for log_probs in predicted])


def measure_chat(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    reference: ChatReference,
    progress: Progress,
    label: str,
) -> ChatMeasured:
    """Score a model on the original's answers, and let it answer too; arguments as above."""
    agreed, kl, tokens = 0, 0.0, 0
    predicted = _predictions(model, chat, reference.answers, progress, label)
    for log_probs, answer, expected in zip(
        predicted, reference.answers, reference.log_probs, strict=True
    ):
        expected = expected.float()
        agreed += int((log_probs.argmax(-1) == answer).sum())
        kl += float((expected.exp() * (expected - log_probs)).sum())
        tokens += len(answer)
    own = _answers(model, tokenizer, chat, progress, label)
    return ChatMeasured(agreed / tokens, kl / tokens, loop_share(own))


def chat_figures(chat: Chat, reference: ChatReference, measured: ChatMeasured) -> ChatFigures:
    """Put a model's measures beside the original's."""
    return ChatFigures(
        task=chat.name,
        questions=len(chat.prompts),
        tokens=sum(len(answer) for answer in reference.answers),
        new_tokens=chat.new_tokens,
        agreement=measured.agreement,
        kl=measured.kl,
        original_loops=loop_share([answer.tolist() for answer in reference.answers]),
        converted_loops=measured.loops,
    )


def loop_share(answers: Sequence[Sequence[int]]) -> float:
    """The share of answers that loop."""
    return sum(map(is_loop, answers)) / len(answers)


def is_loop(answer: Sequence[int]) -> bool:
    """True if a sequence of ``LOOP_TOKENS`` tokens occurs ``LOOP_TIMES`` times in an answer."""
    starts = range(len(answer) - LOOP_TOKENS + 1)
    times = Counter(tuple(answer[start : start + LOOP_TOKENS]) for start in starts)
    return max(times.values(), default=0) >= LOOP_TIMES


def _answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, chat: Chat, progress: Progress, label: str
) -> list[list[int]]:
    stop = stop_tokens(model, tokenizer)
    description = f"{label}, answers to {chat.name}"
    return greedy_answers(model, chat.prompts, stop, chat.new_tokens, progress, description)


@torch.no_grad()
def _predictions(
    model: Any, chat: Chat, answers: Sequence[Tensor], progress: Progress, label: str
) -> Iterator[Tensor]:
    """Yield log-probabilities of every token of an answer  # [tokens, vocabulary], on the CPU"""
    with progress.task(f"{label}, predictions of {chat.name}", len(answers)) as advance:
        for prompt, answer in zip(chat.prompts, answers, strict=True):
            ids = torch.cat((prompt, answer[:-1])).to(model.device)
            output = model(ids[None], use_cache=False, logits_to_keep=len(answer))
            yield output.logits[0].float().log_softmax(-1).cpu()
            advance()
