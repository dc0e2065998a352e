"""Memory for intermediate results, the same for all layers."""

from math import prod

import torch
from torch import Tensor


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
            (memory,) = current_workspace_manager().get_simultaneous(
                ((sum(prod(shape) for shape in shapes),), dtype)
            )
            parts = memory.split([prod(shape) for shape in shapes])
            return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    return [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
