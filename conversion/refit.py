"""Closed-form refits of a converted layer on the stream it will really see."""

import torch
from torch import Tensor

from vllm_mha2mla.hf.attention import LatentAttention


@torch.no_grad()
def refit_output(
    attention: LatentAttention, heads: Tensor, targets: Tensor, ridge: float
) -> dict[str, Tensor]:
    """Least squares for ``o_proj``, drawn towards what it is now.

    With ``X`` the heads' outputs of the converted layer on the converted stream, one column more
    for the bias, and ``T`` what they should add to that stream:

        min_W ||X W - T||^2 + ridge * mean(diag(X^T X)) ||W - W_0||^2

    The target holds the original attention's output and the drift of the residual stream, so a
    layer also repairs what the layers before it lost. The bias is not drawn anywhere.

    Args:
        attention: the converted attention; its ``o_proj`` is ``W_0``.
        heads: its heads' outputs  # [tokens, heads * v]
        targets: ``attention_original + (stream_original - stream_converted)``  # [tokens, hidden]
        ridge: strength of the pull, relative to the mean power of a head's output.

    Returns:
        ``o_proj.weight`` and ``o_proj.bias``, float32.
    """
    W_0 = torch.cat((attention.o_proj.weight.T, attention.o_proj.bias[None])).double()
    gram = torch.zeros(len(W_0), len(W_0), dtype=torch.float64, device=heads.device)
    cross = torch.zeros_like(W_0)
    for x, t in zip(heads.split(4096), targets.split(4096), strict=True):
        X = torch.cat((x, x.new_ones(len(x), 1)), dim=1).double()
        gram += X.T @ X
        cross += X.T @ t.double()
    pull = torch.full_like(gram.diagonal(), ridge * float(gram.diagonal()[:-1].mean()))
    pull[-1] = 0
    gram += torch.diag(pull)
    W = torch.linalg.solve(gram, cross + pull[:, None] * W_0)
    return {
        "o_proj.weight": W[:-1].T.float().contiguous(),
        "o_proj.bias": W[-1].float().contiguous(),
    }
