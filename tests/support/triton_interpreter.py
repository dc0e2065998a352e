"""Triton kernels on a machine without a GPU: Triton's interpreter, for this process alone.

Triton decides when it is imported, and again when a kernel is defined, whether kernels are to be
interpreted. So all of it is imported here, before anything else could, and the variable is taken
back: processes that tests start, engines among them, are not to inherit it.
"""

import importlib
import os

import torch

MODULES = (
    "triton.experimental.gluon",  # the interpreter imports it at the first launch otherwise
    "vllm_mha2mla.kernels.cuda.attention",
    "vllm_mha2mla.kernels.cuda.coded_gather",
    "vllm_mha2mla.kernels.cuda.encode",
    "vllm_mha2mla.kernels.cuda.gather",
    "vllm_mha2mla.kernels.cuda.grouped_product",
    "vllm_mha2mla.kernels.cuda.rotate",
)


def interpret_triton():
    if torch.cuda.is_available():
        return
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        for module in MODULES:
            importlib.import_module(module)
    finally:
        del os.environ["TRITON_INTERPRET"]
