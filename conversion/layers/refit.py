"""Closed-form refits of a converted layer on the stream it will really see."""

import torch
from torch import Tensor

# Weight of the sink tokens in a refit, relative to all text. A tenth of this keeps the sinks; from
# 1 / 40 to 1 / 10 the model stays closest to the original, and more is at the expense of the text.
SINK_WEIGHT = 1 / 25


class OutputRefit:
    """Least squares for ``o_proj``, drawn towards what it is now; fed window by window.

    With ``X`` the heads' outputs of the converted layer on the converted stream, one column more
    for the bias, ``T`` what they should add to that stream and ``D`` a diagonal of token weights:

        min_W tr[(X W - T)^T D (X W - T)] + ridge * mean(diag(X^T D X) / tokens) ||W - W_0||^2

    The target holds the original attention's output and the drift of the residual stream, so a
    layer also repairs what the layers before it lost. The bias is not drawn anywhere.

    ``D`` comes from ``token_weights``. Unweighted, the fit would be about the first token of each
    window, whose stream is a hundred times larger than others.

    ``X^T D X`` and ``X^T D T`` of a window are float32 products, summed over windows in float64.
    Within a window rounding errs by about 1e-6 of the window's mean power, far below the pull of a
    ridge of some tokens, which decides in directions of so little power. Double products would take
    most of a refit's time.

    Args:
        weight: ``o_proj.weight`` of the converted attention  # [hidden, heads * v]
        bias: ``o_proj.bias``  # [hidden]
        ridge: strength of the pull, as that of so many tokens of mean power.
    """

    def __init__(self, weight: Tensor, bias: Tensor, ridge: float) -> None:
        self._before = torch.cat((weight.T, bias[None])).float()  # W_0  # [heads * v + 1, hidden]
        width = len(self._before)
        self._gram = self._before.new_zeros(width, width, dtype=torch.float64)
        self._cross = torch.zeros_like(self._before, dtype=torch.float64)
        self._ridge = ridge
        self._tokens = 0

    def add(self, head_outputs: Tensor, targets: Tensor, token_weights: Tensor) -> None:
        """Count some windows.

        Args:
            head_outputs: the converted heads' outputs, float32  # [tokens, heads * v]
            targets: ``attention_original + (stream_original - stream_converted)``, float32
                # [tokens, hidden]
            token_weights: diagonal of ``D``  # [tokens]
        """
        X = torch.cat((head_outputs, head_outputs.new_ones(len(head_outputs), 1)), dim=1)
        weighted = X * token_weights[:, None]  # D X
        self._tokens += len(X)
        self._gram += weighted.T @ X
        self._cross += weighted.T @ targets

    def solve(self) -> dict[str, Tensor]:
        """``o_proj.weight`` and ``o_proj.bias``, float32. Uses the sums up: call it once."""
        gram, cross = self._gram, self._cross
        power = gram.diagonal()[:-1].mean() / self._tokens
        pull = (self._ridge * power).repeat(len(gram))
        pull[-1] = 0
        gram.diagonal().add_(pull)
        cross.addcmul_(pull[:, None], self._before.double())
        W = torch.linalg.solve(gram, cross)
        return {
            "o_proj.weight": W[:-1].T.float().contiguous(),
            "o_proj.bias": W[-1].float().contiguous(),
        }
