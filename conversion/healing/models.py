"""Student and teacher in one process: what learns, what they share, what is rounded."""

from typing import Any

import torch
from torch import Tensor, nn

from conversion.families import family_of
from conversion.runtime.dense_attention import NAME as DENSE_ATTENTION
from vllm_mha2mla.config import ROPE_INV_FREQ


def set_attention(model: Any, device: str) -> None:
    """The attention that trains fastest: our dense one on a CPU, the fused one elsewhere."""
    model.config._attn_implementation = DENSE_ATTENTION if device == "cpu" else "sdpa"


def choose_trainable(student: Any, everything: bool) -> dict[str, nn.Parameter]:
    """Let the converted attention learn, or everything, but never the rotary frequencies.

    Returns:
        what learns, by name.
    """
    family, chosen = family_of(student.config), {}
    for name, parameter in student.named_parameters():
        learns = (everything or family.in_attention(name)) and not name.endswith(ROPE_INV_FREQ)
        parameter.requires_grad_(learns)
        if learns:
            chosen[name] = parameter
    return chosen


def share_frozen(student: nn.Module, teacher: nn.Module) -> None:
    """Let the student use the teacher's tensors where it has the same and does not learn them."""
    theirs = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        other = theirs.get(name)
        if other is None or parameter.requires_grad or not _same(parameter, other):
            continue
        parameter.data = other.data


def round_frozen(model: Any) -> None:
    """Weights of linear layers that do not learn, in the dtype their products run in: bfloat16.

    An embedding stays as it is: it may be the head's weight too.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
