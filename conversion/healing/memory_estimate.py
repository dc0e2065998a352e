"""How much memory a healing takes, worked out before it starts; and when it runs out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

from conversion.errors import HealingError, first_line
from conversion.families import family_of
from conversion.healing.models import choose_trainable
from conversion.healing.recipe import HealingRecipe
from vllm_mha2mla.config import latent_widths

FLOAT32 = 4
# Weight, gradient and Adam's two moments.
LEARNING = 4 * FLOAT32
# Copies of the compared positions' logits: student's and teacher's, rounded and not, logarithms,
# gradients.
LOGITS = 7
# Kept for the backward pass per token and layer, in bytes per number of each width: norms and
# residuals; gate, up, their product; queries and outputs in the latent; scores before and after
# softmax.
HIDDEN, INTERMEDIATE, LATENT, SCORES = 30, 12, 10, 10
LESS = (
    "lower window or batch_size in the recipe, set gradient_checkpointing, or store the teacher's "
    "predictions with --cache-teacher"
)


def healing_bytes(
    student: Any, teacher: Any, recipe: HealingRecipe, rounded: bool, shards: int = 1
) -> int:
    """About how much a device needs at most, at the start or in a step.

    Args:
        student: the converted model; on the meta device it will do.
        teacher: the original, if it is asked in training; likewise.
        recipe: what is trained, and how large a batch is.
        rounded: whether frozen weights are bfloat16 in training.
        shards: over how many devices both are cut.
    """
    learning = sum(p.numel() for p in choose_trainable(student, recipe.train == "all").values())
    frozen = _numbers(student) - learning
    if shards > 1:
        frozen += 0 if teacher is None else _numbers(teacher)
        parts = (learning * LEARNING + frozen * (2 if rounded else FLOAT32)) // shards
        gathered = _gathered(student) + (0 if teacher is None else _gathered(teacher))
        # What products in bfloat16 keep of weights that learn, for the backward pass.
        kept = 2 * learning if rounded and not recipe.gradient_checkpointing else 0
        return parts + gathered + kept + _activations(student.config, recipe)
    # The teacher shares what the student does not learn: of it only the rest is new.
    other = 0 if teacher is None else max(0, _numbers(teacher) - frozen)
    per_number = 2 if rounded else FLOAT32
    held = learning * LEARNING + (frozen + other) * per_number
    whole = (_numbers(student) + (0 if teacher is None else _numbers(teacher))) * FLOAT32
    return max(whole, held + _activations(student.config, recipe))


def asking_bytes(teacher: Any, window: int, shards: int = 1) -> int:
    """About how much a device needs to store a teacher's predictions, a window at a time."""
    logits = LOGITS * window * int(teacher.config.vocab_size) * FLOAT32
    weights = _numbers(teacher) * FLOAT32
    return logits + (weights if shards == 1 else weights // shards + _gathered(teacher))


def _gathered(model: Any) -> int:
    """What is whole at once of a model that is cut: all that is no layer, and two of the layers."""

    def numbers(module: nn.Module) -> int:
        # A gradient is there twice while it is summed over devices.
        return sum(p.numel() * (3 if p.requires_grad else 1) for p in module.parameters())

    layers = [numbers(layer) for layer in family_of(model.config).layers(model)]
    return (numbers(model) - sum(layers) + 2 * max(layers)) * FLOAT32


def _activations(config: Any, recipe: HealingRecipe) -> int:
    tokens = recipe.batch_size * recipe.window
    widest = max(widths.width for widths in latent_widths(config))
    layer = tokens * (
        HIDDEN * config.hidden_size
        + INTERMEDIATE * config.intermediate_size
        + config.num_attention_heads * (LATENT * widest + SCORES * recipe.window)
    )
    layers = config.num_hidden_layers
    if recipe.gradient_checkpointing:
        kept = layers * tokens * config.hidden_size * FLOAT32 + layer
    else:
        kept = layers * layer
    compared = tokens // recipe.stride
    return int(kept + LOGITS * compared * config.vocab_size * FLOAT32)


def _numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def available_bytes() -> int:
    """Free memory of the device that Trainer will use."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def check_memory(needed: int) -> None:
    """Whether it fits.

    Raises:
        HealingError: it does not.
    """
    free = available_bytes()
    if needed > free:
        raise HealingError(
            f"healing needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; {LESS}"
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Memory that runs out all the same, as an error of ours.

    Raises:
        HealingError: it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        raise HealingError(f"memory ran out ({first_line(error)}); {LESS}") from error


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on a device or in the process."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # On the CPU PyTorch has no error of its own for it.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
