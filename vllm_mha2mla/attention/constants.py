"""The constants of a layer in the engine: float32 parameters that take no rounded tensor."""

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.utils import set_weight_attrs

from vllm_mha2mla.config import refuse_rounded


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

    parameter = nn.Parameter(torch.empty(numbers, dtype=torch.float32), requires_grad=False)
    set_weight_attrs(parameter, {"weight_loader": load})
    return parameter
