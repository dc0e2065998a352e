"""The weight of an error at each token in a refit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of a stream that is nothing but rounding, far below that of any token.
LEAST_POWER = 1e-12
# Pull towards equal weights, in tokens of mean power per number of the stream. Fitted to 2 windows
# it told most of other windows, or nearly: 0.3 and less follow the chance of drawn labels, 10 less.
RIDGE = 3.0
# Bound of a logarithm, for tokens unlike any that it was fitted to (the first of a text).
LIMIT = 7.0


@dataclass(frozen=True)
class TokenWeights:
    """The cost of an error of one layer's attention output at a token, up to a common factor.

        D_t = exp(a . h_t / |h_t| + b) / |h_t|^2

    with ``h_t`` the stream where the output is added and ``|h|`` its root mean square. Whatever
    reads the stream divides by its size (RMSNorm), so an error counts as far as it turns it; and
    it counts where predictions depend on it, which the stream itself tells.

    Attributes:
        direction: ``a``  # [hidden]
        offset: ``b``
    """

    direction: Tensor
    offset: float = 0.0

    def __call__(self, stream: Tensor) -> Tensor:
        """``D_t`` of one window: [tokens, hidden] -> [tokens]"""
        power = _power(stream)
        turned = (stream @ self.direction.to(stream.device)) * power.rsqrt() + self.offset
        return turned.clamp(-LIMIT, LIMIT).exp() / power


def equal_weights(hidden: int) -> TokenWeights:
    """``D_t = 1 / |h_t|^2``: nothing is known of the predictions."""
    return TokenWeights(torch.zeros(hidden))


def fit_token_weights(
    streams: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]
) -> TokenWeights:
    """Ridge regression of the logarithm of tokens' sensitivities on the stream.

    With ``g_t`` the gradient of a drawn label's log-likelihood at the attention's output, errors of
    one size cost ``|g_t|^2`` times as much at token ``t``. But the more weights differ, the fewer
    tokens a refit has to go by: half way, in logarithms, between that and ``1 / |h_t|^2`` loses
    little of the one and nothing by the other. Through a regression, a few windows serve all the
    text that a refit sees, and the chance of the labels drawn averages out.

        y_t = log(|g_t| |h_t|)            min_{a,b}  sum_t (a . h_t / |h_t| + b - y_t)^2 + r |a|^2

    with ``y`` relative to its median, and ``r`` the power of ``RIDGE * hidden`` tokens.

    Args:
        streams: ``h`` of each window  # each [tokens, hidden]
        gradients: of each window, ``g`` for each set of labels  # each [tokens, hidden]

    Returns:
        the weights; equal ones where gradients vanish or overflow.
    """
    hidden = streams[0].shape[1]
    powers = [_power(stream) for stream in streams]
    # The first token of a window is a sink, a hundred times larger than the others.
    X = torch.cat(
        [(h * p.rsqrt()[:, None])[1:] for h, p in zip(streams, powers, strict=True)]
    )  # [n, hidden]
    sizes = torch.cat(
        [
            (torch.stack([g.square().sum(1) for g in sets]).mean(0) * p)[1:]
            for sets, p in zip(gradients, powers, strict=True)
        ]
    )  # [n]
    median = sizes.median()
    # Of one token nothing can be told either.
    if len(sizes) < 2 or not (torch.isfinite(sizes).all() and median > 0):
        return equal_weights(hidden)
    y = (sizes / median).log().clamp(-LIMIT, LIMIT) / 2
    mean_x, mean_y = X.mean(0), y.mean()
    X = X - mean_x
    gram = X.T @ X  # [hidden, hidden]
    gram.diagonal().add_(RIDGE * hidden * gram.diagonal().mean() / len(X))
    a = torch.linalg.solve(gram, X.T @ (y - mean_y))
    return TokenWeights(a, float(mean_y - mean_x @ a))


def _power(stream: Tensor) -> Tensor:
    return stream.square().mean(1).clamp_min(LEAST_POWER)
