"""What a student is trained to: its teacher's predictions, its teacher's states, or the text."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# Below this a mass is rounding.
LEAST_MASS = 1e-6
LEAST_SIZE = 1e-12


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
    """The divergence where all but a teacher's likeliest tokens count as one.

        mean_t  sum_{i in top} p_i log(p_i / q_i)  +  r log(r / (1 - sum_{i in top} q_i))

    A lower bound of the whole divergence, and close to it: the rest holds little.

    Args:
        student: logits  # [positions, vocabulary]
        tokens: the teacher's likeliest  # [positions, k], int64
        log_p: their log-probabilities  # [positions, k]
        rest: probability of all others, ``r``  # [positions]
    """
    log_q = student.float().log_softmax(-1).gather(-1, tokens)  # [positions, k]
    log_q_rest = (1 - log_q.exp().sum(-1)).clamp(min=LEAST_MASS).log()  # [positions]
    rest = rest.clamp(min=LEAST_MASS)
    top = (log_p.exp() * (log_p - log_q)).sum(-1)  # [positions]
    return (top + rest * (rest.log() - log_q_rest)).mean()


def next_token(student: Tensor, following: Tensor) -> Tensor:
    """``mean_t -log p_student(x_t+1 | x_<=t)``, in nats.

    Args:
        student: logits  # [positions, vocabulary]
        following: the tokens that come next  # [positions]
    """
    return functional.cross_entropy(student.float(), following)


def hidden_error(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """``mean_{l,t} |h_lt - h*_lt|^2 / |h*_lt|^2`` over all layers and tokens.

    Each token by its own size: the first token's hidden state is a hundred times larger than
    others, and the norm in front of whatever reads a hidden state divides by its size.

    Args:
        student: hidden states after each layer  # layers x [batch, tokens, hidden]
        teacher: the same of the teacher.
    """
    errors = [
        (ours.float() - theirs.float()).square().sum(-1)
        / theirs.float().square().sum(-1).clamp_min(LEAST_SIZE)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack([error.mean() for error in errors]).mean()
