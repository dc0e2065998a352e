"""A layer that writes rows ready to be coded: their basis folded into the weights around them."""

import torch
from torch import Tensor

from conversion.coding.row_statistics import RowStatistics
from vllm_mha2mla.coding.codebooks import codebook
from vllm_mha2mla.coding.row_code import UNIT, RowCode
from vllm_mha2mla.config import FIRST_ROW, ROPE_INV_FREQ, ROTARY_MEAN

# A basis bears a metric that is steadier than eigenvalues need: half of it is its diagonal.
SHRINKAGE, RIDGE = 0.5, 3e-2
DOWN, UP = "kv_a_proj_with_mqa", "kv_b_proj"


@torch.no_grad()
def folded(
    tensors: dict[str, Tensor],
    statistics: RowStatistics,
    code: RowCode,
    heads: int,
    first: Tensor,
) -> dict[str, Tensor]:
    """The same attention, with rows ``y = [z ; u]`` in place of ``[c ; k_rope]``.

        z = S A (c - mu_c)      [W_UK; W_UV] -> [W_UK; W_UV] A^-1 S^-1
                                b_O -> b_O + sum_h W_O[h] W_UV[g(h)] mu_c
        u = F P (k - mu_k)      q_rope -> F^-1 P q_rope        m = F P mu_k

    - ``A`` is the basis of :func:`latent_basis`: components of unit variance, those of the same
      bits alike. ``mu`` is the rows' mean. What it adds to keys cancels in the softmax; what it
      adds to values is the same for every token, since attention sums to one.
    - ``P`` orders rotary pairs by falling bits. ``F`` gives each pair unit variance; common to both
      halves of a pair, it commutes with RoPE and is undone in the queries. ``m`` is the rotary
      columns' mean, which RoPE turns as it turns the keys: ``key = [z ; R_n (u + m)]``.
    - ``S``, and ``F`` with it, gives columns of unit variance the standard deviation at which their
      codebook covers them (``gain``).

    A text's first row, which looks like no other, is coded against the mean of such rows. Nothing
    is lost, up to rounding: but for the code, the layer computes what it did before.

    Args:
        tensors: the ``self_attn`` tensors of a converted layer.
        statistics: of its rows  # [rank + rope]
        code: of its rows.
        heads: query heads.
        first: the inputs of the maps at tokens that begin a text, their mean  # [inputs]

    Returns:
        the tensors, float32, with a bias of the down-projection, ``rotary_mean  # [rope]`` and
        ``first_row  # [rank + rope]``.
    """
    rank, rope = statistics.rank, statistics.rope
    mean, latent_mean = statistics.mean.double(), statistics.mean[:rank].double()
    to_basis, from_basis = latent_basis(statistics, code)
    S = _gains(code.latent_units, mean.device)  # [rank]
    to_basis, from_basis = S[:, None] * to_basis, from_basis / S

    _, order, variance = statistics.rotary_spectrum()
    F = (_gains(code.rotary_units[0], mean.device) * variance.rsqrt()).repeat(2)  # [rope]
    columns = torch.cat((order, order + rope // 2))  # P  # [rope]

    down = tensors[f"{DOWN}.weight"].double()  # [rank + rope, inputs]
    bias = tensors.get(f"{DOWN}.bias", down.new_zeros(())).double() - mean  # [rank + rope]
    up = tensors[f"{UP}.weight"].double()  # [kv_heads * (nope + v), rank]
    down = torch.cat((to_basis @ down[:rank], F[:, None] * down[rank:][columns]))
    bias = torch.cat((to_basis @ bias[:rank], F * bias[rank:][columns]))
    changed = {
        f"{DOWN}.weight": down,
        f"{DOWN}.bias": bias,
        f"{UP}.weight": up @ from_basis,
        "o_proj.bias": tensors["o_proj.bias"].double() + _output(tensors, heads, latent_mean),
        ROPE_INV_FREQ: tensors[ROPE_INV_FREQ][order],
        ROTARY_MEAN: F * mean[rank:][columns],
        FIRST_ROW: down @ first.double() + bias,
    }
    for name in ("q_proj.weight", "q_proj.bias", "q_b_proj.weight", "q_b_proj.bias"):
        if name in tensors:
            changed[name] = _queries(tensors[name], heads, columns, F)
    return tensors | {name: x.float().contiguous() for name, x in changed.items()}


def latent_basis(statistics: RowStatistics, code: RowCode) -> tuple[Tensor, Tensor]:
    """The basis ``A`` that a latent is coded in, and its inverse  # both [rank, rank], float64

    Of the components of ``latent_spectrum``, those with the same bits form a class. Within it they
    are scaled by ``lambda^-1/4``, which evens out what a common step costs, and turned by a random
    rotation, which makes them alike and close to Gaussian, fit for one codebook and one scale. At
    last each is divided by its standard deviation.
    """
    lam, to_basis, from_basis = statistics.latent_spectrum(SHRINKAGE, RIDGE)
    of_column = torch.tensor(code.latent_units).repeat_interleave(UNIT)  # [rank]
    variance = torch.empty_like(lam)
    for b in set(code.latent_units):
        (of_class,) = (of_column == b).nonzero(as_tuple=True)
        scale = lam[of_class] ** -0.25
        Q = _rotation(len(of_class)).to(lam.device)
        to_basis[of_class] = Q @ (scale[:, None] * to_basis[of_class])
        from_basis[:, of_class] = (from_basis[:, of_class] / scale) @ Q.T
        variance[of_class] = Q.square() @ (scale.square() * lam[of_class])
    deviation = variance.sqrt()
    return to_basis / deviation[:, None], from_basis * deviation


def _gains(units: tuple[int, ...], device: torch.device) -> Tensor:
    """The standard deviation that each column is given  # [len(units) * UNIT], float64"""
    of_units = torch.tensor([codebook(b).gain for b in units], dtype=torch.float64)
    return of_units.repeat_interleave(UNIT).to(device)


def _output(tensors: dict[str, Tensor], heads: int, latent: Tensor) -> Tensor:
    """The output of an attention whose tokens all have this latent, without bias  # [hidden]"""
    output = tensors["o_proj.weight"].double()
    v = output.shape[1] // heads
    rows = (tensors[f"{UP}.weight"].double() @ latent).view(-1, v)
    # Queries and values have as many numbers: W_UK and W_UV of a KV head take turns.
    values = rows[1::2]  # [kv_heads, v]
    return output @ values.repeat_interleave(heads // len(values), dim=0).flatten()


def _queries(x: Tensor, heads: int, columns: Tensor, F: Tensor) -> Tensor:
    """Query rows of every head, or their biases, whose rotary part reads the columns ``F P``.

    # [heads * (nope + rope), ...]
    """
    # In float32 and no more copies: they are the largest tensor of a layer.
    by_head = x.float().clone().unflatten(0, (heads, -1))
    rotary = by_head[:, by_head.shape[1] - len(F) :]
    rotary.copy_(rotary[:, columns] / F.float().view(-1, *[1] * (x.dim() - 1)))
    changed: Tensor = by_head.flatten(0, 1)
    return changed


def _rotation(size: int) -> Tensor:
    """A random rotation that depends on nothing but its size  # [size, size], float64"""
    generator = torch.Generator().manual_seed(size)
    Q: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
    return Q
