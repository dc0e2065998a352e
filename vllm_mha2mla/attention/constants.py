"""The constants of a layer in the engine: float32 parameters that take no rounded tensor."""

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.utils import set_weight_attrs

from vllm_mha2mla.config import refuse_rounded
from vllm_mha2mla.errors import CheckpointError


def constant(name: str, numbers: int) -> nn.Parameter:
    """A constant that vLLM loads.

    Args:
        name: in the checkpoint, for the error if it is rounded there.
        numbers: its length.
    """

    # vLLM's reloading of weights puts another tensor in the place of ``param``, by this name.
    def load(param: Tensor, loaded_weight: Tensor) -> None:
        # vLLM would cast it without a word.
        refuse_rounded([(name, str(loaded_weight.dtype))])
        default_weight_loader(param, loaded_weight)

    parameter = nn.Parameter(not_loaded(numbers, torch.float32), requires_grad=False)
    set_weight_attrs(parameter, {"weight_loader": load})
    return parameter


def not_loaded(size: int | tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor that :func:`refuse_not_loaded` knows until a checkpoint's takes its place."""
    return torch.full(size if isinstance(size, tuple) else (size,), torch.nan, dtype=dtype)


def refuse_not_loaded(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that no checkpoint has filled.

    vLLM misses what is absent in plain checkpoints, and not in quantised ones.

    Raises:
        CheckpointError: it holds what is no number.
    """
    if not tensor.is_meta and not bool(tensor.isfinite().all()):
        raise CheckpointError(
            f"{name} is not in the checkpoint, or holds NaN or infinite values; convert the model "
            "again"
        )
