"""The effect of errors of keys and values on the attention output, by random probes."""

from torch import Tensor


def head_gradients(
    a: Tensor, q: Tensor, v: Tensor, output_gradient: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of one head's part of a linear function of the attention output.

    Of several heads at once, their number leads every shape. With ``L = sum_m r_m . o_m``,
    ``R_m = W_O^T r_m`` and the softmax's derivative,

        dL/dv_n = sum_m a[m, n] R_m
        dL/ds[m, n] = a[m, n] (R_m . v_n - sum_j a[m, j] R_m . v_j)
        dL/dk_n = scale sum_m dL/ds[m, n] q_m

    with ``q`` and ``k`` as before rotation: the gradient of a key that does not turn, up to what
    its query is mapped by.

    Args:
        a: attention, every query's over all keys  # [queries, keys]
        q: queries before rotation  # [queries, d]
        v: values  # [keys, d]
        output_gradient: ``R``  # [queries, d]
        scale: of the scores.

    Returns:
        gradients for keys and for values  # both [keys, d]
    """
    of_values = a.mT @ output_gradient
    of_scores = output_gradient @ v.mT  # [queries, keys]
    of_scores -= (a * of_scores).sum(-1, keepdim=True)
    of_scores *= a
    return scale * (of_scores.mT @ q), of_values
