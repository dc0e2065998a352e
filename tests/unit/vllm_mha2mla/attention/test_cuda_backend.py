"""Metadata for GPUs, from what the host knows of a batch."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")
pytest.importorskip("triton")

from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_mha2mla.attention.cuda_backend import CudaLatentMetadataBuilder


def builder(speculated=None, full_graphs=True, largest=8):
    speculation = speculated and SimpleNamespace(
        num_speculative_tokens=speculated, parallel_drafting=False
    )
    config = SimpleNamespace(
        speculative_config=speculation,
        use_v2_model_runner=True,
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        compilation_config=SimpleNamespace(
            cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: full_graphs),
            max_cudagraph_capture_size=largest,
        ),
        attention_config=SimpleNamespace(flash_attn_max_num_splits_for_cuda_graph=32),
    )
    return CudaLatentMetadataBuilder(None, ["a"], config, torch.device("cpu"))


def common(requests, padding=0, known=True):
    """A batch of (new tokens, context), and requests and tokens that pad a graph."""
    new = [count for count, _ in requests] + [0] * padding
    lengths = torch.tensor([n for _, n in requests] + [0] * padding, dtype=torch.int32)
    starts = torch.tensor([0, *new], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    tokens = sum(new) + padding
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=lengths,
        num_reqs=len(new),
        num_actual_tokens=tokens,
        max_query_len=max(new),
        max_seq_len=4096,
        block_table_tensor=torch.zeros(len(new), 4, dtype=torch.int32),
        slot_mapping=torch.zeros(tokens, dtype=torch.int64),
        seq_lens_cpu_upper_bound=lengths if known else None,
    )


def test_decodes_lead_and_prefills_follow():
    batch = builder().build(0, common([(1, 40), (1, 7), (5, 5), (30, 90)]))
    assert (batch.decodes, batch.decode_tokens, batch.decode_query_len) == (2, 2, 1)
    assert list(batch.prefills) == [(5, 5), (30, 90)]
    assert (batch.max_query_len, batch.max_seq_len) == (30, 4096)
    part = batch.decode_part()
    assert part.num_tokens == len(part.seq_lens) == len(part.block_table) == 2
    assert part.query_start_loc.tolist() == [0, 1, 2]
    assert part.max_query_len == 1
    assert not part.prefills


def test_speculated_tokens_are_decoded():
    batch = builder(speculated=3).build(0, common([(4, 40), (2, 9), (1, 7), (5, 5)]))
    assert (batch.decodes, batch.decode_tokens, batch.decode_query_len) == (3, 7, 4)
    assert list(batch.prefills) == [(5, 5)]


def test_a_padded_graph_of_decodes():
    batch = builder().build(0, common([(1, 40), (1, 7)], padding=2))
    assert (batch.num_tokens, batch.decodes, batch.decode_tokens) == (4, 4, 4)
    assert not batch.prefills
    assert batch.num_splits == 32


def test_splits_are_bounded_only_where_graphs_keep_their_results():
    assert builder(full_graphs=False).build(0, common([(1, 40)])).num_splits == 0
    assert builder().build(0, common([(9, 9)])).num_splits == 0
    assert builder(largest=512).build(0, common([(1, 40)] * 512)).num_splits == 8


def test_lengths_that_the_host_does_not_know():
    batch = builder().build(0, common([(1, 40), (5, 5)], known=False))
    assert batch.decodes == 1
    assert not batch.prefills
