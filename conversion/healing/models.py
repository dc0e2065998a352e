"""Student and teacher in one process: what learns, what they share, what is rounded."""

from typing import Any

import torch
from torch import Tensor, nn

from conversion.families import family_of
from conversion.runtime.dense_attention import NAME as DENSE_ATTENTION
from vllm_mha2mla.config import latent_widths

# Name of the projection whose outputs are the cache's rows.
# Modules of an attention that cache rows come from; the last three only with QK-norm.
WRITE_ROWS = ("kv_a_proj_with_mqa", "k_proj", "k_norm", "v_proj")


def set_attention(model: Any, device: str) -> None:
    """Choose the attention that trains fastest: our dense one on a CPU, the fused one elsewhere."""
    model.set_attn_implementation(DENSE_ATTENTION if device == "cpu" else "sdpa")


def choose_trainable(student: Any, train_all: bool) -> dict[str, nn.Parameter]:
    """Set ``requires_grad`` of every parameter, and return those that learn, by name.

    Args:
        student: the converted model.
        train_all: let everything learn; otherwise only the converted attention. What writes coded
            rows never learns: their code is made for its mean, variances and basis, and steps that
            leave those cost more than they gain. Rotary frequencies are no parameters.
    """
    family, chosen = family_of(student.config), {}
    layers = enumerate(latent_widths(student.config))
    kept = [index for index, widths in layers if widths.kept]
    coded = student.config.row_bits_per_layer is not None
    for name, parameter in student.named_parameters():
        fixed = coded and _writes_rows(name)
        learns = (train_all or family.in_attention(name, kept)) and not fixed
        parameter.requires_grad_(learns)
        if learns:
            chosen[name] = parameter
    return chosen


def _writes_rows(name: str) -> bool:
    return any(f".{module}." in name for module in WRITE_ROWS)


def share_frozen(student: nn.Module, teacher: nn.Module) -> None:
    """Point the student's frozen parameters at the teacher's memory where the values are equal."""
    teacher_parameters = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        other = teacher_parameters.get(name)
        if other is None or parameter.requires_grad or not _same(parameter, other):
            continue
        parameter.data = other.data


def round_frozen(model: Any) -> None:
    """Convert frozen weights of linear layers to bfloat16, the dtype their products run in.

    Embeddings keep their dtype: an embedding may also be the weight of the language-model head.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
