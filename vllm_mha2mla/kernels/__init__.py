"""Latent attention over a paged cache: the functions of every kernel, and the choice of one.

A kernel has ``write_latents``, ``latent_attention`` and ``layer`` as ``reference.py`` defines
them, which it is tested against.
"""

import functools
import logging
from collections.abc import Callable

from torch import Tensor

from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.errors import KernelBuildError
from vllm_mha2mla.kernels import build, cpu, reference
from vllm_mha2mla.kernels.batch import PagedBatch

__all__ = ["LayerFactory", "PagedBatch", "layer_factory"]

logger = logging.getLogger("vllm.mha2mla")

LayerStep = Callable[[Tensor, Tensor, Tensor, PagedBatch, Tensor], None]
LayerFactory = Callable[[Tensor, Tensor, Tensor, Tensor, float, int, CodedRow | None], LayerStep]


@functools.cache
def layer_factory() -> LayerFactory:
    """Choose the maker of a layer's attention: the C++ kernel, compiled now if it never was.

    Where it cannot be compiled, PyTorch computes, and a warning says so.
    """
    try:
        kernel = cpu.CpuKernel(build.library(), cpu.chosen_isa())
    except KernelBuildError as error:
        logger.warning("mha2mla: attention runs through PyTorch, several times slower: %s", error)
        return reference.ReferenceLayer
    logger.info("mha2mla: CPU kernel for %s", kernel.isa)
    return kernel.layer
