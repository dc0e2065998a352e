"""The divergence of next-token distributions from the original's, with little memory."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# Tokens whose logits exist at once.
CHUNK = 512


@torch.no_grad()
def mean_divergences(
    original: Tensor, converted: Sequence[Tensor], head: Iterable[Tensor]
) -> list[float]:
    """``KL(p || q)``, nats, of each converted model's next-token distribution, mean over tokens.

    The vocabulary passes by in pieces, each read once. With logits ``l`` and ``q`` converted,

        KL = sum_v p_v (l^p_v - l^q_v) - log sum_v exp l^p_v + log sum_v exp l^q_v

    and what earlier pieces gave is scaled as the sum in ``p_v`` grows.

    Args:
        original: the original's last hidden states, after the final norm  # [tokens, hidden]
        converted: each converted model's at the same tokens  # each [tokens, hidden]
        head: the output projection in blocks of rows  # each [rows, hidden]
    """
    tokens = len(original)
    log_p = original.new_full((tokens,), float("-inf"), dtype=torch.float64)
    log_q = log_p.repeat(len(converted), 1)
    gap = torch.zeros_like(log_q)  # sum_v p_v (l^p_v - l^q_v)  # [converted, tokens]
    for rows in head:
        W = rows.to(original).T  # [hidden, rows]
        for chunk in torch.arange(tokens, device=original.device).split(CHUNK):
            logits = original[chunk] @ W
            total = torch.logaddexp(log_p[chunk], logits.logsumexp(-1).double())
            p = (logits - total[:, None].float()).exp()
            gap[:, chunk] *= (log_p[chunk] - total).exp()
            log_p[chunk] = total
            for index, states in enumerate(converted):
                others = states[chunk] @ W
                gap[index, chunk] += (p * (logits - others)).sum(-1).double()
                more = others.logsumexp(-1).double()
                log_q[index, chunk] = torch.logaddexp(log_q[index, chunk], more)
    means: list[float] = (gap - log_p + log_q).mean(-1).tolist()
    return means
