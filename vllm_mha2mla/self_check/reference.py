"""A checked layer in float32, and the bounds of what a kernel may differ by.

Outputs are compared with those over the rows that the kernel itself has stored, so that rows'
rounding does not count twice; and the rows with what they should be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_mha2mla.coding.packing import unpack
from vllm_mha2mla.coding.rounding import decode, rounded
from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels.batch import PagedBatch
from vllm_mha2mla.kernels.reference import ReferenceLayer
from vllm_mha2mla.rope import apply_rotary, rotary_angles
from vllm_mha2mla.self_check.inputs import sizes
from vllm_mha2mla.self_check.requests import Batch
from vllm_mha2mla.self_check.stored import StoredBlocks

# 2^-24, 2^-11 and 2^-8 are what rounding changes of a number. A row is rounded once; turned in
# float32, it is off by that of its angle too. An output has passed six roundings, and scores of up
# to 6 have made the rounding of queries larger in its probabilities: 9 of these units were the most
# in layers of all widths with random weights (in float32, with its angles and exponentials, 300),
# and the bound is more than twice that. A wrong scale, row or angle is off by tens of per cent.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 24 * 2.0**-11, torch.bfloat16: 24 * 2.0**-8}
ROW_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
TIE = 1e-4  # a kernel's sums and logarithms are closer to the reference's
SMALLEST = 1e-30  # a row or an output of zeros has no size


@dataclass(frozen=True)
class Subject:
    """A layer as the engine runs it.

    Attributes:
        cache: the whole, bound one  # [blocks, block_size, row]
        w_uk: ``W_UK``  # [groups, nope, rank]
        w_uv: ``W_UV``  # [groups, v, rank]
        inv_freq: frequency of each rotary pair, float32  # [rope/2]
        scale: factor of the scores.
        heads: query heads.
        widths: of the rows.
        coded: where rows are coded, how.
        isa: instruction set of a CPU kernel.
        longest: tokens of the longest text.
    """

    cache: Tensor
    w_uk: Tensor
    w_uv: Tensor
    inv_freq: Tensor
    scale: float
    heads: int
    widths: LatentWidths
    coded: CodedRow | None
    isa: str | None
    longest: int


class Reference:
    """The same layer in float32, over the rows that a kernel has stored.

    Args:
        subject: the layer.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject, self.coded = subject, subject.coded
        self.w_uk, self.w_uv = subject.w_uk.float().cpu(), subject.w_uv.float().cpu()
        self.inv_freq = subject.inv_freq.float().cpu()
        if self.coded is not None:
            constants = (self.coded.rotary_mean, self.coded.first_row)
            self.coded = CodedRow(self.coded.code, *(x.float().cpu() for x in constants))
        self.sizes = sizes(self.w_uk, subject.widths, subject.scale, subject.heads, self.coded)
        dtypes = {subject.w_uk.dtype}
        if self.coded is None:
            dtypes.add(subject.cache.dtype)
        self.tolerance = max(TOLERANCES[dtype] for dtype in dtypes)
        self.row_tolerance = max(ROW_TOLERANCES[dtype] for dtype in dtypes)

    def rows(self, stored: Tensor, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Judge new rows.

        A coded row counts for what it is further off than the reference's code of it. A number or
        a scale at a border between codes may get either: a tenth more is no error, nor what the
        codes of a slightly smaller or larger row are off by.

        Args:
            stored: the rows' numbers or bytes, and those of a row that nobody has written
                # [tokens + 1, row]
            rows: as the layer got them  # [tokens, rank + rope]
            positions: of the tokens  # [tokens]

        Returns:
            rows as attention uses them, the last without its mean  # [tokens + 1, rank + rope],
            and the error of each new one, relative to its size, the larger one of the latent and
            the rotary part  # [tokens]
        """
        widths = self.subject.widths
        c, k_rope = rows.split((widths.kv_lora_rank, widths.qk_rope_head_dim), dim=-1)
        k_rope = apply_rotary(k_rope, *rotary_angles(positions, self.inv_freq))
        expected = torch.cat((c, k_rope), dim=-1)  # [tokens, rank + rope]
        decoded = self._decoded(stored)
        found, nothing, best = decoded[:-1], decoded[-1:], [expected]
        if self.coded is not None:
            first = positions == 0
            known = first[:, None] * self.coded.first_row
            near = (known + (expected - known) * (1 + change) for change in (0, -TIE, TIE))
            best = [rounded(self.coded.code, y, self.coded.first_row, first) for y in near]
            found = found + known
        errors = [found[:, widths.width :].abs().sum(-1)]  # padding has to be zero
        for part in (slice(0, widths.kv_lora_rank), slice(widths.kv_lora_rank, widths.width)):
            off = (found[:, : widths.width] - expected)[:, part].norm(dim=-1)
            size = expected[:, part].norm(dim=-1).clamp_min(SMALLEST)
            of_best = torch.stack([(y - expected)[:, part].norm(dim=-1) for y in best]).amax(0)
            errors.append((off - 1.1 * of_best).clamp_min(0) / size)
        found = found[:, : widths.width] + self._mean(positions)
        return torch.cat((found, nothing[:, : widths.width])), torch.stack(errors).amax(0)

    def begin(self, blocks: StoredBlocks, steps: Sequence[Batch], nothing: Tensor) -> None:
        """Take a cache that no step has written to.

        Args:
            blocks: all that the steps use.
            steps: for the place of each block in its text.
            nothing: a row that nobody has written, without its mean  # [rank + rope]
        """
        size = blocks.block_size
        self.blocks = blocks
        place = {b: i for batch in steps for r in batch.requests for i, b in enumerate(r.blocks)}
        first = torch.tensor([place[number] * size for number in blocks.numbers], device="cpu")
        n = (first[:, None] + torch.arange(size, device="cpu")).flatten()  # [copied * block_size]
        self.cache = nothing + self._mean(n)  # [copied * block_size, rank + rope]

    def output_errors(self, query: Tensor, rows: Tensor, batch: Batch, out: Tensor) -> Tensor:
        """Error of each token's output, relative to its size; the largest of all heads.

        An output may be small because its terms cancel, and its error is not then. Its size is
        that which its latent has in any direction, and of the latent at least that of a mean of so
        many independent rows.

        Args:
            query: of the step  # [tokens, heads * (nope + rope)]
            rows: the new ones, as attention uses them  # [tokens, rank + rope]
            batch: the requests.
            out: of the kernel  # [tokens, heads * v]

        Returns:
            # [tokens]
        """
        subject, numbers = self.subject, self.blocks.numbers
        self.cache[self.blocks.local(batch.slots)] = rows
        cache = self.cache.view(len(numbers), -1, rows.shape[1])
        layer = ReferenceLayer(
            cache, self.w_uk, self.w_uv, self.inv_freq, subject.scale, subject.heads
        )
        local = {number: index for index, number in enumerate(numbers)}
        table = [[local.get(block, 0) for block in blocks] for blocks in batch.table.tolist()]
        step = PagedBatch(
            batch.tokens,
            batch.starts,
            batch.lengths,
            torch.tensor(table, dtype=torch.int32, device="cpu"),
            batch.slots,
        )
        latents = layer.latents(query, batch.positions, step)  # [tokens, heads, rank]
        expected = torch.bmm(latents.transpose(0, 1), layer.w_uv.transpose(1, 2)).transpose(0, 1)
        off = (out.view_as(expected) - expected).norm(dim=-1)  # [tokens, heads]
        rank = latents.shape[-1]
        least = self.sizes.row[:rank].norm() / (batch.positions + 1).sqrt()  # [tokens]
        size = torch.maximum(latents.norm(dim=-1), least[:, None]) / rank**0.5
        errors: Tensor = off / (size * layer.w_uv.norm(dim=(1, 2))).clamp_min(SMALLEST)
        return errors.amax(-1)

    def _decoded(self, stored: Tensor) -> Tensor:
        """Stored rows, a coded one without what it is relative to, float32  # [tokens, row]"""
        if self.coded is None:
            return stored.float()
        return decode(self.coded.code, *unpack(self.coded.code, stored))

    def _mean(self, n: Tensor) -> Tensor:
        """The turned mean, which rows of these positions lack  # [rows, rank + rope]"""
        rank, rope = self.subject.widths.kv_lora_rank, self.subject.widths.qk_rope_head_dim
        mean = torch.zeros(rope, device="cpu") if self.coded is None else self.coded.rotary_mean
        turned = apply_rotary(mean, *rotary_angles(n, self.inv_freq))
        return torch.nn.functional.pad(turned, (rank, 0))
