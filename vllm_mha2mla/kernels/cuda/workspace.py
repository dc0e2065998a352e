"""Memory for intermediate results, the same for all layers."""

import torch
from torch import Tensor

ALIGNMENT = 256
"""Bytes; each tensor begins at a multiple."""


def workspace(dtype: torch.dtype, device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Tensors of these shapes, valid until the next call.

    Inside the engine they lie in vLLM's workspace, which profiling sees and which does not grow
    afterwards. Elsewhere they are new.
    """
    if device.type == "cuda":
        from vllm.v1.worker.workspace import (
            current_workspace_manager,
            is_workspace_manager_initialized,
        )

        if is_workspace_manager_initialized():
            made: list[Tensor] = current_workspace_manager().get_simultaneous(
                *((shape, dtype) for shape in shapes)
            )
            return made
    return [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
