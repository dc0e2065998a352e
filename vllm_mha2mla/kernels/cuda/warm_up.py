"""Compilation of a layer's Triton kernels while the engine starts.

Triton compiles a kernel for the kinds of its arguments when it is first launched. Here a layer
computes batches of every kind that a step can be, of requests that are not there: no row is
written, and what comes out is dropped.
"""

from collections.abc import Iterator

import torch

from vllm_mha2mla.kernels.cuda.batch import CudaBatch
from vllm_mha2mla.kernels.cuda.layer import CudaLayer

# New tokens of a batch: the tiles of the products with up-projections are chosen by them.
DECODES = (1, 4, 16, 64, 256)
PREFILLS = (2, 100, 600)


def warm_up(layer: CudaLayer, model_len: int) -> None:
    """Compute every kind of batch once.

    Args:
        layer: with its cache.
        model_len: the longest context.
    """
    widths = [layer.heads * (layer.nope + layer.rope), layer.rank + layer.rope]
    for batch in _batches(layer, model_len):
        tokens = batch.num_tokens
        positions = torch.zeros(tokens, dtype=torch.int64, device=layer.cache.device)
        out = layer.w_uk.new_empty(tokens, layer.heads * layer.v)
        inputs = [[layer.w_uk.new_zeros(tokens, width) for width in widths]]
        if not any(width % 8 for width in widths):
            # Of one product (``attention/joined.py``): other strides may be another kind.
            inputs.append(layer.w_uk.new_zeros(tokens, sum(widths)).split(widths, dim=-1))
        for query, rows in inputs:
            layer(query, rows, positions, batch, out)


def _batches(layer: CudaLayer, model_len: int) -> Iterator[CudaBatch]:
    for tokens in DECODES:
        for longest in (1, model_len):
            yield _batch(layer, [1] * tokens, longest)
    for tokens in PREFILLS:
        for decodes in (0, 3):
            new = [1] * decodes + [tokens]
            for longest in (1, model_len):
                batch = _batch(layer, new, longest, decodes)
                batch.prefills = ()
                yield batch
            if layer.expansion is not None:
                batch = _batch(layer, new, 1, decodes)
                layer.expansion.plan(batch, always=True)
                yield batch


def _batch(layer: CudaLayer, new: list[int], longest: int, decodes: int | None = None) -> CudaBatch:
    decodes = len(new) if decodes is None else decodes
    device, block_size = layer.cache.device, layer.cache.shape[1]

    def integers(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    starts = [sum(new[:index]) for index in range(len(new) + 1)]
    blocks = -(-max(new) // block_size)
    return CudaBatch(
        num_tokens=sum(new),
        query_start_loc=integers(starts),
        seq_lens=integers(new),
        block_table=integers([0] * (len(new) * blocks)).view(len(new), blocks),
        slot_mapping=torch.full((sum(new),), -1, dtype=torch.int64, device=device),
        max_query_len=max(new),
        max_seq_len=max(longest, *new),
        decodes=decodes,
        decode_tokens=decodes,
        decode_query_len=1,
        prefills=[(count, count) for count in new[decodes:]],
    )
