"""The losses of healing: divergence from the teacher, hidden states' error, next tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# A probability mass below this is rounding.
MIN_MASS = 1e-6
MIN_SQUARE = 1e-12


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_t KL(p_teacher(. | x_<=t) || p_student(. | x_<=t))``, in nats.

    Args:
        student: logits  # [positions, vocabulary]
        teacher: logits  # [positions, vocabulary]
    """
    return functional.kl_div(
        student.float().log_softmax(-1),
        teacher.float().log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )


def top_divergence(student: Tensor, tokens: Tensor, log_p: Tensor, rest: Tensor) -> Tensor:
    """The divergence with all but the teacher's likeliest tokens merged into one.

        mean_t  sum_{i in top} p_i log(p_i / q_i)  +  r log(r / (1 - sum_{i in top} q_i))

    A lower bound of the whole divergence, and close to it where the rest holds little.

    Args:
        student: logits  # [positions, vocabulary]
        tokens: the teacher's likeliest tokens  # [positions, k], int64
        log_p: their log-probabilities  # [positions, k]
        rest: probability of all other tokens, ``r``  # [positions]
    """
    log_q = student.float().log_softmax(-1).gather(-1, tokens)  # [positions, k]
    log_q_rest = (1 - log_q.exp().sum(-1)).clamp(min=MIN_MASS).log()  # [positions]
    rest = rest.clamp(min=MIN_MASS)
    top = (log_p.exp() * (log_p - log_q)).sum(-1)  # [positions]
    return (top + rest * (rest.log() - log_q_rest)).mean()


def next_token(student: Tensor, following: Tensor) -> Tensor:
    """``mean_t -log p_student(x_t+1 | x_<=t)``, in nats.

    Args:
        student: logits  # [positions, vocabulary]
        following: the token after each position  # [positions]
    """
    return functional.cross_entropy(student.float(), following)


def hidden_error(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """``mean_{l,t} |h_lt - h*_lt|^2 / |h*_lt|^2`` over all layers and tokens.

    Each token's error is relative to its own square: the first token's hidden state is a hundred
    times larger than the others, and the norm before every reader divides by the size anyway.

    Args:
        student: hidden states ``h`` after each layer  # num_layers x [batch, tokens, hidden]
        teacher: the same of the teacher, ``h*``.
    """
    errors = [
        (h.float() - target.float()).square().sum(-1)
        / target.float().square().sum(-1).clamp_min(MIN_SQUARE)
        for h, target in zip(student, teacher, strict=True)
    ]
    return torch.stack([error.mean() for error in errors]).mean()
