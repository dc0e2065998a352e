"""Latent attention in plain PyTorch: the definition every kernel is tested against.

Multi-query attention whose keys are the cache rows ``[c ; k_rope]`` and whose values are their
first ``rank`` columns, one copy in memory (DeepSeek-V2, arXiv:2405.04434, section 2.1.2):

    o[t, h] = sum_n softmax_n(scale * q[t, h] . row[n]) c[n]     over n <= position of t
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.kernels.batch import PagedBatch
from vllm_mha2mla.kernels.coded_reference import CodedCache
from vllm_mha2mla.rope import apply_rotary, rotary_angles

# Queries of one request attended at a time: bounds the scores to this many rows of the context.
QUERY_CHUNK = 256


def write_latents(cache: Tensor, kv_latent: Tensor, slots: Tensor) -> None:
    """Store new tokens' latents at their slots; a negative slot is padding and is skipped.

    Args:
        cache: the paged cache, changed in place  # [blocks, block_size, width]
        kv_latent: ``[c ; k_rope]`` of the new tokens, any float dtype  # [tokens, width]
        slots: ``block * block_size + offset`` of each token  # [tokens], int64
    """
    valid = slots >= 0
    if not bool(valid.all()):
        kv_latent, slots = kv_latent[valid], slots[valid]
    block_size = cache.shape[1]
    cache[slots // block_size, slots % block_size] = kv_latent.to(cache.dtype)


def latent_attention(
    query: Tensor,
    cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    out: Tensor,
    rows_of: Callable[[Tensor, int], Tensor] | None = None,
) -> None:
    """Causal attention of every request's newest tokens over its cached rows.

    Decode, prefill, chunked prefill and any mixture of them are the same call: request ``r`` owns
    queries ``query_start_loc[r]:query_start_loc[r + 1]``, and they are the last of its
    ``seq_lens[r]`` tokens, whose rows are already in the cache.

    Args:
        query: absorbed queries ``[W_UK^T q_nope ; q_rope]``  # [tokens, heads, width]
        cache: the paged cache  # [blocks, block_size, width]
        block_table: block numbers of each request  # [requests, max_blocks]
        query_start_loc: first query of each request, and the end  # [requests + 1]
        seq_lens: context length of each request, new tokens included  # [requests]
        scale: factor of the scores.
        out: attention-weighted latents, filled in place  # [tokens, heads, rank]
        rows_of: reads the first rows in some blocks of a coded cache, float32  # [rows, width]
    """
    rank = out.shape[-1]
    block_size = cache.shape[1]
    starts = query_start_loc.tolist()
    for request, length in enumerate(seq_lens.tolist()):
        first, last = starts[request], starts[request + 1]
        if first == last:
            continue
        blocks = block_table[request, : -(-length // block_size)].long()
        if rows_of is None:
            rows = cache[blocks].flatten(0, 1)[:length].float()  # [context, width]
        else:
            rows = rows_of(blocks, length)
        for start in range(first, last, QUERY_CHUNK):
            end = min(start + QUERY_CHUNK, last)
            visible = length - (last - end)  # rows up to the newest query of the chunk
            scores = torch.matmul(query[start:end].float() * scale, rows[:visible].T)
            if end - start > 1:
                position = torch.arange(visible - (end - start), visible).view(-1, 1, 1)
                hidden = torch.arange(visible).view(1, 1, -1) > position
                scores.masked_fill_(hidden, float("-inf"))
            probabilities = scores.softmax(dim=-1)  # [queries, heads, visible]
            out[start:end] = torch.matmul(probabilities, rows[:visible, :rank])


def of_every_head(weights: Tensor, heads: int) -> Tensor:
    """A group's weights repeated for its query heads  # [groups, ...] -> [heads, ...]"""
    return weights.repeat_interleave(heads // len(weights), dim=0)


class ReferenceLayer:
    """A layer between its projections: rotary embedding, cache write, absorption, attention.

    Absorption (DeepSeek-V2, arXiv:2405.04434, section 2.1.2):

        q_latent[h] = W_UK[h]^T q_nope[h],     out[h] = W_UV[h] sum_n p(h, n) c[n]

    Args:
        cache: the paged cache  # [blocks, block_size, rank + rope], or of coded rows
        w_uk: ``W_UK``, shared by the query heads of a group  # [groups, nope, rank]
        w_uv: ``W_UV``  # [groups, v, rank]
        inv_freq: frequency of each rotary pair, float32  # [rope/2]
        scale: factor of the scores.
        heads: query heads.
        coded: where rows are coded, how.
    """

    def __init__(
        self,
        cache: Tensor,
        w_uk: Tensor,
        w_uv: Tensor,
        inv_freq: Tensor,
        scale: float,
        heads: int,
        coded: CodedRow | None = None,
    ) -> None:
        self.coded = None if coded is None else CodedCache(cache, coded, inv_freq)
        self.cache, self.scale, self.inv_freq = cache, scale, inv_freq
        self.w_uk, self.w_uv = of_every_head(w_uk, heads), of_every_head(w_uv, heads)

    def __call__(
        self, query: Tensor, kv_latent: Tensor, positions: Tensor, batch: PagedBatch, out: Tensor
    ) -> None:
        """Compute one step; entries of the tensors beyond ``batch.num_tokens`` are padding.

        Args:
            query: ``[q_nope ; q_rope]`` of every head  # [tokens, heads * (nope + rope)]
            kv_latent: ``[c ; k_rope]`` of the new tokens, not rotated  # [tokens, rank + rope]
            positions: position of each token in its request  # [tokens], int64
            batch: the requests.
            out: filled in place  # [tokens, heads * v]
        """
        tokens, (rank, rope) = batch.num_tokens, (self.w_uk.shape[2], 2 * len(self.inv_freq))
        c, k_rope = kv_latent[:tokens].split((rank, rope), dim=-1)  # [tokens, rank | rope]
        k_rope = apply_rotary(k_rope, *rotary_angles(positions[:tokens], self.inv_freq))
        rows, slots = torch.cat((c, k_rope), dim=-1), batch.slot_mapping[:tokens]
        if self.coded is None:
            write_latents(self.cache, rows, slots)
        else:
            self.coded.write(rows, positions[:tokens], slots)
        latents = self.latents(query, positions, batch)
        values = torch.bmm(latents.transpose(0, 1), self.w_uv.transpose(1, 2))
        out[:tokens] = values.transpose(0, 1).flatten(1)

    def latents(self, query: Tensor, positions: Tensor, batch: PagedBatch) -> Tensor:
        """Attention-weighted latents of a step whose rows are written  # [tokens, heads, rank]"""
        tokens, rope = batch.num_tokens, 2 * len(self.inv_freq)
        heads, nope, rank = self.w_uk.shape
        q_nope, q_rope = (
            query[:tokens].view(tokens, heads, nope + rope).split((nope, rope), dim=-1)
        )  # [tokens, heads, nope | rope]
        cos, sin = rotary_angles(positions[:tokens], self.inv_freq)  # [tokens, rope/2]
        q_rope = apply_rotary(q_rope, cos.unsqueeze(1), sin.unsqueeze(1))
        q_latent = torch.bmm(q_nope.transpose(0, 1), self.w_uk).transpose(0, 1)
        latents = query.new_empty(tokens, heads, rank)
        latent_attention(
            torch.cat((q_latent, q_rope), dim=-1),
            self.cache,
            batch.block_table,
            batch.query_start_loc,
            batch.seq_lens,
            self.scale,
            latents,
            None if self.coded is None else self.coded.rows,
        )
        return latents
