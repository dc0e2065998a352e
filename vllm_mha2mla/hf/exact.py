"""The constants of a layer, in float32 and untrained whatever is done to a model.

In 16 bits, rotary angles of long contexts would be wrong by whole turns. As buffers, the constants
are out of the reach of optimisers, of ``requires_grad_`` and of adapters; their names in a
checkpoint are those that parameters would have. Casts of a whole module pass them by. Where another
way was found to cast them (``tensor.data = ...``, mixed precision for buffers), the model neither
computes nor saves.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from vllm_mha2mla.config import CONSTANTS, refuse_rounded
from vllm_mha2mla.errors import CheckpointError


class ExactConstants(nn.Module):
    """A module with constants, of which it has some of ``CONSTANTS``."""

    def add_constant(self, name: str, numbers: int) -> None:
        """Register a constant  # [numbers]"""
        self.register_buffer(name, torch.zeros(numbers, dtype=torch.float32))

    def constants(self) -> dict[str, Tensor]:
        """The constants of this module, by name."""
        buffers = self._buffers.items()
        return {name: x for name, x in buffers if name in CONSTANTS and x is not None}

    def exact(self, name: str) -> Tensor:
        """A constant that is still in float32.

        Raises:
            CheckpointError: it was cast.
        """
        constant: Tensor = getattr(self, name)
        if constant.dtype != torch.float32:
            raise CheckpointError(
                f"{name} was cast to {str(constant.dtype).removeprefix('torch.')}, and is of use "
                "in float32 alone; cast with model.to(dtype), which passes it by"
            )
        return constant

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.constants()
        super()._apply(fn, recurse)
        for name, after in self.constants().items():
            if after.dtype != before[name].dtype:
                self._buffers[name] = before[name].to(after.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in self.constants():
            self.exact(name)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        given = {
            name: state_dict[prefix + name] for name in CONSTANTS if prefix + name in state_dict
        }
        refuse_rounded((prefix + name, str(x.dtype)) for name, x in given.items())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name, constant in self.constants().items():
            self._buffers[name] = constant.float()
