"""Adapters that were made for the original, and what PEFT looks for in it.

The queries of a converted model are other rows than the original's, and it has no keys and values.
PEFT leaves out the targets that it does not find, and says nothing.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vllm_mha2mla.errors import CheckpointError

MERGE = "merge the adapter into the original, then convert that"
OF_THE_ORIGINAL = ("k_proj", "v_proj")


class NotInConverted(nn.Module):
    """Stands where the original has a projection, so that adapters on it are refused.

    PEFT shows this text in its error.

    Args:
        name: of the projection.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __repr__(self) -> str:
        return (
            f"NotInConverted({self.name}: a converted model has no such projection; adapt "
            f"kv_a_proj_with_mqa and kv_b_proj instead. An adapter of the original: {MERGE})"
        )


def other_rows(name: str) -> CheckpointError:
    """The error about a tensor of an adapter that does not fit its projection."""
    return CheckpointError(f"{name} does not fit: this adapter was made for the original; {MERGE}")


def refuse_adapters_of_the_original(
    attention: nn.Module, state_dict: Mapping[str, Any], prefix: str
) -> None:
    """Refuse weights of an adapter that belong to the original's projections.

    Args:
        attention: of a converted model, with adapters in it.
        state_dict: what is loaded, by name.
        prefix: of the attention's names there.

    Raises:
        CheckpointError: they do.
    """
    own = dict(attention.named_parameters())
    for name, tensor in state_dict.items():
        if not name.startswith(prefix) or ".lora_" not in name:
            continue
        rest = name.removeprefix(prefix)
        module, _, part = rest.partition(".lora_")
        absent = isinstance(getattr(attention, module, None), NotInConverted)
        other = part.startswith("B") and rest in own and own[rest].shape[0] != tensor.shape[0]
        if absent or other:
            raise other_rows(name)
