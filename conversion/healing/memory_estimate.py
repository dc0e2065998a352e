"""An estimate of the memory that a healing takes, before it starts; and memory that runs out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

from conversion.errors import TrainingError, first_line
from conversion.families import family_of
from conversion.healing.models import choose_trainable
from conversion.healing.recipe import HealingRecipe
from conversion.runtime.memory_errors import is_out_of_memory
from vllm_mha2mla.config import latent_widths
from vllm_mha2mla.memory import free_bytes

FLOAT32, BFLOAT16 = 4, 2
# Bytes per trained parameter: weight, gradient and Adam's two moments.
TRAINED_BYTES = 4 * FLOAT32
# Copies of the compared positions' logits: student's and teacher's, rounded and not, logarithms,
# gradients.
LOGIT_COPIES = 7
# Bytes kept for the backward pass per token and layer, for each number of a width: norms and
# residuals (hidden size); gate, up and their product (intermediate size); queries and outputs in
# the latent (heads * width); scores before and after softmax (heads * window).
HIDDEN, INTERMEDIATE, LATENT, SCORES = 30, 12, 10, 10
WAY_OUT = (
    "lower window or batch_size in the recipe, set gradient_checkpointing, or store the teacher's "
    "predictions with --cache-teacher"
)


def healing_bytes(
    student: Any, teacher: Any, recipe: HealingRecipe, bf16_frozen: bool, shards: int = 1
) -> int:
    """Estimate the most memory that a device needs, at the start or in a step.

    Args:
        student: the converted model; it may be on the meta device.
        teacher: the original if it runs during training, else ``None``; likewise.
        recipe: trained parameters, batch size and window.
        bf16_frozen: whether frozen weights are converted to bfloat16.
        shards: number of devices that both models are sharded over.
    """
    trained = sum(p.numel() for p in choose_trainable(student, recipe.train == "all").values())
    frozen = _num_parameters(student) - trained
    frozen_bytes = BFLOAT16 if bf16_frozen else FLOAT32
    if shards > 1:
        frozen += 0 if teacher is None else _num_parameters(teacher)
        parts = (trained * TRAINED_BYTES + frozen * frozen_bytes) // shards
        gathered = _gathered_bytes(student) + (0 if teacher is None else _gathered_bytes(teacher))
        # Autocast keeps a bfloat16 copy of every trained weight for the backward pass.
        copies = BFLOAT16 * trained if bf16_frozen and not recipe.gradient_checkpointing else 0
        return parts + gathered + copies + _activation_bytes(student.config, recipe)
    # The student shares its frozen weights with the teacher, which adds only what differs.
    added = 0 if teacher is None else max(0, _num_parameters(teacher) - frozen)
    held = trained * TRAINED_BYTES + (frozen + added) * frozen_bytes
    num_loaded = _num_parameters(student) + (0 if teacher is None else _num_parameters(teacher))
    return max(num_loaded * FLOAT32, held + _activation_bytes(student.config, recipe))


def prediction_bytes(teacher: Any, window: int, shards: int = 1) -> int:
    """Estimate the memory a device needs to store a teacher's predictions, window by window."""
    logits = LOGIT_COPIES * window * int(teacher.config.vocab_size) * FLOAT32
    weights = _num_parameters(teacher) * FLOAT32
    return logits + (weights if shards == 1 else weights // shards + _gathered_bytes(teacher))


def host_bytes(student: Any, original: Any | None, shards: int = 1) -> int:
    """Estimate the most host memory that a process needs beside its GPU.

    A model is read into host memory before it moves to the GPU, one after the other. A sharded one
    moves layer by layer, and the first process collects what was learned at the end.

    Args:
        student: the converted model, with what learns; it may be on the meta device.
        original: the original if this process loads it; likewise.
        shards: number of devices that both models are sharded over.
    """
    if shards > 1:
        return int(FLOAT32 * sum(p.numel() for p in student.parameters() if p.requires_grad))
    models = [student] if original is None else [student, original]
    return FLOAT32 * max(map(_num_parameters, models))


def _gathered_bytes(model: Any) -> int:
    """Bytes of a sharded model gathered at once: all but the layers, and two of these."""

    def num_gathered(module: nn.Module) -> int:
        # A gradient is there twice while it is summed over devices.
        return sum(p.numel() * (3 if p.requires_grad else 1) for p in module.parameters())

    layers = [num_gathered(layer) for layer in family_of(model.config).layers(model)]
    return (num_gathered(model) - sum(layers) + 2 * max(layers)) * FLOAT32


def _activation_bytes(config: Any, recipe: HealingRecipe) -> int:
    tokens = recipe.batch_size * recipe.window
    widest = max(widths.width for widths in latent_widths(config))
    layer = tokens * (
        HIDDEN * config.hidden_size
        + INTERMEDIATE * config.intermediate_size
        + config.num_attention_heads * (LATENT * widest + SCORES * recipe.window)
    )
    num_layers = config.num_hidden_layers
    if recipe.gradient_checkpointing:
        kept = num_layers * tokens * config.hidden_size * FLOAT32 + layer
    else:
        kept = num_layers * layer
    compared = tokens // recipe.stride
    return int(kept + LOGIT_COPIES * compared * config.vocab_size * FLOAT32)


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def available_bytes(device: str) -> int:
    """Free memory of the device that Trainer will use, ``cpu`` or ``cuda``.

    On the CPU, what the machine and the control groups of this process leave.
    """
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = free_bytes()
    return int(psutil.virtual_memory().available) if free is None else free


def check_memory(needed: int, device: str, host: int = 0) -> None:
    """Refuse to start with too little free memory, on the device or on the host beside a GPU.

    Args:
        needed: bytes of the device.
        device: ``cpu`` or ``cuda``.
        host: bytes of the host's memory that all processes need beside their GPUs.

    Raises:
        TrainingError: fewer are free.
    """
    free = available_bytes(device)
    if needed > free:
        raise TrainingError(
            f"healing needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
            f"{WAY_OUT}"
        )
    free = available_bytes("cpu") if host else host
    if host > free:
        raise TrainingError(
            f"models pass through the host's memory on their way to a GPU: healing needs about "
            f"{host / 2**30:.1f} GiB of it, {free / 2**30:.1f} GiB are free; end other programs or "
            "raise the container's limit, or use fewer processes"
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn out-of-memory errors of the block into ours.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"memory ran out ({first_line(error)}); {WAY_OUT}") from error
