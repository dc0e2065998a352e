"""Compile the attention kernels for a GPU that need not be there: sizes to JSON on standard output.

    python -m tests.support.compile_triton '[["plain", 90, 232448, 192, 64, 32]]'

A case is the kind of rows, the compute capability, shared memory, rank, rope and queries. A process
of its own, because in pytest's Triton interprets.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_mha2mla.kernels.cuda.attention import _attend
from vllm_mha2mla.kernels.cuda.coded_attention import attend_coded
from vllm_mha2mla.kernels.cuda.pieces import pieces_of
from vllm_mha2mla.kernels.cuda.rows import row_chunks
from vllm_mha2mla.kernels.cuda.tuning import (
    Gpu,
    coded_shared_memory,
    coded_tiles,
    tiles_for,
)

POINTERS = {
    "query": "*bf16", "out": "*bf16", "block_table": "*i32", "query_start_loc": "*i32",
    "seq_lens": "*i32", "lse": "*fp32", "partial": "*fp32", "state": "*fp32", "units": "*i32",
    "levels": "*bf16", "pairs": "*i32",
    "first_row": "*fp32", "means": "*fp32", "turns": "*fp16",
}  # fmt: skip
LONG = {"query_token_stride", "out_token_stride", "block_stride", "table_stride"}


def compile_plain(gpu, rank, rope, queries):
    tiles = tiles_for(rank, rope, queries, gpu, 2)
    chunks = row_chunks(rank, rope)
    constants = {
        "OUT": rank, "RANK": rank, "ROPE": rope, "C0": chunks.latent[0], "C1": chunks.latent[1],
        "C2": chunks.latent[2], "CR": chunks.rotary, "BLOCK_SIZE": 16, "ROW_STRIDE": rank + rope,
        "ALIGN": 8, "QUERIES": tiles.queries, "TILE": tiles.rows, "STAGES": tiles.stages,
        "SPLIT": True, "WITH_LSE": True,
    }  # fmt: skip
    return compile_kernel(
        _attend, gpu, "*bf16", constants, tiles, tiles.shared_memory(chunks.width, 2)
    )


def compile_coded(gpu, rank, rope, queries):
    """Rows of which the first piece alone has codes of more than 4 bits."""
    pieces = pieces_of(rank, rope)
    tiles = coded_tiles(pieces, queries, gpu, 2)
    constants = {
        "PIECES": pieces.count, "PIECE": pieces.width, "PADDED_HALF": pieces.half, "WIDE": 1,
        "NARROW_ROTARY": True, "BLOCK_SIZE": 64,
        "QUERIES": tiles.queries, "TILE": tiles.rows, "SPLIT": True, "WITH_LSE": False,
    }  # fmt: skip
    return compile_kernel(
        attend_coded, gpu, "*u8", constants, tiles, coded_shared_memory(tiles, pieces, gpu, 2)
    )


def compile_kernel(kernel, gpu, cache, constants, tiles, estimate):
    pointers = POINTERS | {"cache": cache}
    names = kernel.arg_names
    types = {
        name: "constexpr"
        if name in constants
        else pointers.get(name) or ("fp32" if name == "scale" else "i64" if name in LONG else "i32")
        for name in names
    }
    source = ASTSource(
        kernel,
        types,
        {(names.index(name),): value for name, value in constants.items()},
        {
            (names.index(name),): [["tt.divisibility", 16]]
            for name in names
            if name in pointers or name in LONG
        },
    )
    major, minor = gpu.capability
    target = GPUTarget("cuda", 10 * major + minor, 32)
    compiled = triton.compile(source, target, {"num_warps": tiles.warps})
    registers, stack = usage(compiled.asm["cubin"])
    return {
        "queries": tiles.queries,
        "rows": tiles.rows,
        "warps": tiles.warps,
        "registers": registers,
        "stack": stack,
        "shared": compiled.metadata.shared,
        "estimate": estimate,
        "wgmma": "wgmma" in compiled.asm["ptx"],
        "copies": "cp.async.cg.shared.global" in compiled.asm["ptx"],
    }


def usage(cubin):
    """Registers of a thread, and the bytes that it keeps in memory instead."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    return int(found[1]), int(found[2])


def main():
    results = []
    for kind, capability, shared_memory, *sizes in json.loads(sys.argv[1]):
        gpu = Gpu(divmod(capability, 10), 100, shared_memory)
        results.append({"plain": compile_plain, "coded": compile_coded}[kind](gpu, *sizes))
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
