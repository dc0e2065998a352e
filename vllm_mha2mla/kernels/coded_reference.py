"""A paged cache of coded rows in plain PyTorch: the definition every kernel is tested against."""

import torch
from torch import Tensor

from vllm_mha2mla.coding.packing import byte_places, pack, unpack
from vllm_mha2mla.coding.rounding import decode, encode
from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.rope import apply_rotary, rotary_angles


class CodedCache:
    """Rows as ``coding.packing`` lays them out, written and read.

    Args:
        cache: # [blocks, block_size, row_bytes], uint8
        coded: the code of its rows.
        inv_freq: frequency of each rotary pair, float32  # [rope/2]
    """

    def __init__(self, cache: Tensor, coded: CodedRow, inv_freq: Tensor) -> None:
        self.blocks = cache.view(len(cache), -1)  # [blocks, bytes]
        self.block_size = cache.shape[1]
        self.coded, self.inv_freq = coded, inv_freq

    def write(self, rows: Tensor, positions: Tensor, slots: Tensor) -> None:
        """Store new rows at their slots; a negative slot is padding and is skipped.

        Args:
            rows: ``[z ; R_n u]``, any float dtype  # [tokens, rank + rope]
            positions: ``n`` of each  # [tokens]
            slots: ``block * block_size + offset`` of each  # [tokens], int64
        """
        code = self.coded.code
        valid = slots >= 0
        rows, positions, slots = rows[valid].float(), positions[valid], slots[valid]
        known = (positions == 0)[:, None] * self.coded.first_row
        packed = pack(code, *encode(code, rows - known))
        places = byte_places(code, slots % self.block_size)
        self.blocks[(slots // self.block_size)[:, None], places] = packed

    def rows(self, blocks: Tensor, length: int) -> Tensor:
        """Read a request's rows as attention uses them, ``[z^ ; u^ + R_n m]``.

        Args:
            blocks: the request's  # [blocks of the request], int64
            length: rows to read, from its first.

        Returns:
            float32  # [length, rank + rope]
        """
        code = self.coded.code
        n = torch.arange(length, device=blocks.device)
        places = byte_places(code, n % self.block_size)
        packed = self.blocks[blocks[n // self.block_size][:, None], places]
        rows = decode(code, *unpack(code, packed))
        rows[:1] += self.coded.first_row
        mean = apply_rotary(self.coded.rotary_mean, *rotary_angles(n, self.inv_freq))
        latent = rows.new_zeros(length, code.widths.kv_lora_rank)
        return rows + torch.cat((latent, mean), dim=-1)
