"""Latent attention in plain PyTorch: the definition every kernel is tested against.

Multi-query attention whose keys are the cache rows ``[c ; k_rope]`` and whose values are their
first ``rank`` columns, one copy in memory (DeepSeek-V2, arXiv:2405.04434, section 2.1.2):

    o[t, h] = sum_n softmax_n(scale * q[t, h] . row[n]) c[n]     over n <= position of t
"""

import torch
from torch import Tensor

# Queries of one request attended at a time: bounds the scores to this many rows of the context.
QUERY_CHUNK = 256


def write_latents(cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Store new rows at their slots; a negative slot is padding and is skipped.

    Args:
        cache: the paged cache, changed in place  # [blocks, block_size, width]
        rows: new rows, any float dtype  # [tokens, width]
        slots: ``block * block_size + offset`` of each row  # [tokens], int64
    """
    valid = slots >= 0
    if not bool(valid.all()):
        rows, slots = rows[valid], slots[valid]
    block_size = cache.shape[1]
    cache[slots // block_size, slots % block_size] = rows.to(cache.dtype)


def latent_attention(
    query: Tensor,
    cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    out: Tensor,
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
        scale: what scores are multiplied with.
        out: attention-weighted latents, filled in place  # [tokens, heads, rank]
    """
    rank = out.shape[-1]
    block_size = cache.shape[1]
    starts = query_start_loc.tolist()
    for request, length in enumerate(seq_lens.tolist()):
        first, last = starts[request], starts[request + 1]
        if first == last:
            continue
        blocks = block_table[request, : -(-length // block_size)].long()
        rows = cache[blocks].flatten(0, 1)[:length].float()  # [context, width]
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
