"""Compile the attention kernel for a GPU that need not be there: sizes to JSON on standard output.

    python -m tests.support.compile_triton '[[capability, shared memory, rank, rope, queries], ...]'

A process of its own, because in pytest's Triton interprets.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_mha2mla.kernels.cuda.attention import _attend
from vllm_mha2mla.kernels.cuda.rows import row_chunks
from vllm_mha2mla.kernels.cuda.tuning import Gpu, tiles_for

POINTERS = {
    "query": "*bf16", "cache": "*bf16", "out": "*bf16", "block_table": "*i32",
    "query_start_loc": "*i32", "seq_lens": "*i32", "lse": "*fp32", "partial": "*fp32",
    "state": "*fp32",
}  # fmt: skip
LONG = {"query_token_stride", "out_token_stride", "block_stride", "table_stride"}


def compile_attention(capability, shared_memory, rank, rope, queries):
    gpu = Gpu(tuple(divmod(capability, 10)), 100, shared_memory)
    tiles = tiles_for(rank, rope, queries, gpu, 2)
    chunks = row_chunks(rank, rope)
    constants = {
        "OUT": rank, "RANK": rank, "ROPE": rope, "C0": chunks.latent[0], "C1": chunks.latent[1],
        "C2": chunks.latent[2], "CR": chunks.rotary, "BLOCK_SIZE": 16, "ROW_STRIDE": rank + rope,
        "ALIGN": 8, "QUERIES": tiles.queries, "TILE": tiles.rows, "STAGES": tiles.stages,
        "SPLIT": True, "WITH_LSE": True,
    }  # fmt: skip
    names = _attend.arg_names
    types = {
        name: "constexpr"
        if name in constants
        else POINTERS.get(name) or ("fp32" if name == "scale" else "i64" if name in LONG else "i32")
        for name in names
    }
    source = ASTSource(
        _attend,
        types,
        {(names.index(name),): value for name, value in constants.items()},
        {
            (names.index(name),): [["tt.divisibility", 16]]
            for name in names
            if name in POINTERS or name in LONG
        },
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target, {"num_warps": tiles.warps})
    return {
        "shared": compiled.metadata.shared,
        "estimate": tiles.shared_memory(chunks.width, 2),
        "wgmma": "wgmma" in compiled.asm["ptx"],
        "copies": "cp.async.cg.shared.global" in compiled.asm["ptx"],
    }


if __name__ == "__main__":
    results = [compile_attention(*case) for case in json.loads(sys.argv[1])]
    sys.stdout.write(json.dumps(results))
