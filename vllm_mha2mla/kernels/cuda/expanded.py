"""Prefill with keys and values expanded once per KV group, through dense FlashAttention.

The heads of a group share ``W_UK`` and ``W_UV``, so a group has one key and one value per token:

    K_g = [W_UK[g] c ; k_rope],     V_g = W_UV[g] c

and the prefills of a batch are grouped-query attention over them. The rows come from the cache,
where those of this step already lie, so a context that was cached before costs nothing special.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from vllm_mha2mla.kernels.cuda import flash
from vllm_mha2mla.kernels.cuda.batch import CudaBatch
from vllm_mha2mla.kernels.cuda.coded_gather import gather_coded_rows
from vllm_mha2mla.kernels.cuda.coded_tables import CodedTables
from vllm_mha2mla.kernels.cuda.gather import gather_rows
from vllm_mha2mla.kernels.cuda.plan import (
    Piece,
    Prefill,
    Shape,
    expansion_is_cheaper,
    pieces,
)
from vllm_mha2mla.kernels.cuda.workspace import workspace


@dataclass(frozen=True)
class Part:
    """A piece of a batch with all that its calls need.

    Attributes:
        piece: the requests and groups.
        tokens: the new tokens, counted in the batch's prefills.
        context: tokens of whole contexts.
        starts: first new token of each request and the end; the same of contexts  # [requests + 1]
        longest: the most new tokens, and the longest context.
    """

    piece: Piece
    tokens: slice
    context: int
    starts: tuple[Tensor, Tensor]
    longest: tuple[int, int]


class Expansion:
    """Expanded prefill of one layer.

    Args:
        cache: the paged cache  # [blocks, block_size, row]
        w_uk: ``W_UK``  # [groups, nope, rank]
        w_uv: ``W_UV``  # [groups, v, rank]
        shape: the layer's sizes.
        scale: factor of the scores.
        version: of FlashAttention for keys and values of the shape's widths.
        numbers: size of the workspace.
        tables: where rows are coded, those of the layer.
    """

    def __init__(
        self,
        cache: Tensor,
        w_uk: Tensor,
        w_uv: Tensor,
        shape: Shape,
        scale: float,
        version: int,
        numbers: int,
        tables: CodedTables | None = None,
    ) -> None:
        self.tables = tables
        self.cache, self.shape, self.scale = cache, shape, scale
        self.version, self.numbers = version, numbers
        self.w_uk, self.w_uv = w_uk.transpose(1, 2), w_uv.transpose(1, 2)

    def plan(self, batch: CudaBatch, always: bool = False) -> list[Part]:
        """The parts of a batch's prefills, or none where absorbed attention computes them.

        Args:
            batch: the requests.
            always: expand where that is not cheaper too.
        """
        if not batch.prefills:
            return []
        return batch.once(self.shape, lambda: self._parts(batch.prefills, always))

    def _parts(self, prefills: Sequence[Prefill], always: bool) -> list[Part]:
        made = None
        if always or expansion_is_cheaper(self.shape, prefills):
            made = pieces(self.shape, prefills, self.numbers)
        return _parts(made or [], prefills, self.cache.device)

    def attend(self, query: Tensor, batch: CudaBatch, plan: Sequence[Part], out: Tensor) -> None:
        """Compute the prefills of a batch whose rows have been written.

        Args:
            query: of the prefills' new tokens, turned  # [tokens, heads, nope + rope]
            batch: the requests.
            plan: from ``plan``.
            out: filled in place  # [tokens, heads, v]
        """
        shape = self.shape
        for part in plan:
            at_once, context = part.piece.groups, part.context
            latents, key, value = workspace(
                self.w_uk.dtype,
                self.cache.device,
                (context, shape.latent),
                (context, at_once, shape.key),
                (context, at_once, shape.value),
            )
            latents = latents[:, : shape.rank]
            requests = slice(batch.decodes + part.piece.first, batch.decodes + part.piece.last)
            gathered = (
                *(self.cache, batch.block_table[requests], part.starts[1], part.longest[1]),
                *(latents, key[..., shape.nope :]),
            )
            if self.tables is None:
                gather_rows(*gathered)
            else:
                gather_coded_rows(*gathered, self.tables)
            for first in range(0, shape.groups, at_once):
                groups = slice(first, min(first + at_once, shape.groups))
                self._attend_groups(query, latents, key, value, groups, part, out)

    def _attend_groups(
        self,
        query: Tensor,
        latents: Tensor,
        key: Tensor,
        value: Tensor,
        groups: slice,
        part: Part,
        out: Tensor,
    ) -> None:
        shape, count = self.shape, groups.stop - groups.start
        key, value = key[:, :count], value[:, :count]
        shared = latents.expand(count, -1, -1)  # [groups, tokens, rank]
        torch.bmm(shared, self.w_uk[groups], out=key[..., : shape.nope].transpose(0, 1))
        torch.bmm(shared, self.w_uv[groups], out=value[..., : shape.v].transpose(0, 1))
        size = shape.heads // shape.groups
        heads = slice(groups.start * size, groups.stop * size)
        flash.attend_expanded(
            query[part.tokens, heads],
            key,
            value,
            part.starts,
            part.longest,
            self.scale,
            self.version,
            out[part.tokens, heads],
        )


def _parts(made: Sequence[Piece], prefills: Sequence[Prefill], device: torch.device) -> list[Part]:
    if not made:
        return []
    counts = [
        [0, *accumulate(request[which] for request in prefills[piece.first : piece.last])]
        for piece in made
        for which in (0, 1)
    ]
    # One copy from pinned memory, which the host does not wait for.
    flat = torch.tensor(
        [count for part in counts for count in part], dtype=torch.int32, device="cpu"
    )
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    starts = flat.split([len(part) for part in counts])
    parts, token = [], 0
    for index, piece in enumerate(made):
        new, context = counts[2 * index][-1], counts[2 * index + 1][-1]
        requests = prefills[piece.first : piece.last]
        parts.append(
            Part(
                piece,
                slice(token, token + new),
                context,
                (starts[2 * index], starts[2 * index + 1]),
                (max(query for query, _ in requests), max(length for _, length in requests)),
            )
        )
        token += new
    return parts
