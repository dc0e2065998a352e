"""A short distillation of the attention weights, with the original as teacher and no labels."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from conversion.checkpoint.loading import source_model
from conversion.healing.callbacks import ShowProgress, StopWhenNotFinite
from conversion.healing.models import choose_trainable, round_frozen, set_attention
from conversion.healing.teacher import LiveTeacher
from conversion.healing.trainer import HealingTrainer
from conversion.healing.trainer_arguments import common_arguments
from conversion.recipes.recipe import Recipe
from conversion.runtime.memory import keep_freed_memory
from conversion.runtime.precision import bfloat16_is_fast
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint
from conversion.text.tokens import check_vocabulary
from conversion.text.windows import calibration_windows

# Compare every second position: half the work of the language-model head, which is a quarter of a
# small model's, at nearly the same signal.
STRIDE = 2
WARMUP_STEPS = 10


def refinement_windows(source: SourceCheckpoint, files: Sequence[Path], recipe: Recipe) -> Tensor:
    """Read the text to refine on: one window per step, or fewer if the texts are shorter.

    Args:
        source: the original; its tokenizer and context length are used.
        files: the calibration texts.
        recipe: ``refine_steps`` and ``refine_window``.

    Returns:
        token ids  # [windows, tokens]

    Raises:
        TextError: a text cannot be used, or the tokenizer is not this model's.
    """
    window = source.window(recipe.refine_window)
    ids = calibration_windows(source.tokenizer(), files, recipe.refine_steps * window, window).ids
    check_vocabulary(source.name, source.config.vocab_size, ids)
    return ids


def refine(
    source: SourceCheckpoint,
    config: Any,
    layers: list[dict[str, Tensor]],
    ids: Tensor,
    recipe: Recipe,
    device: torch.device,
    progress: Progress,
) -> list[dict[str, Tensor]]:
    """Train the converted attention of all layers together towards the original's predictions.

        min  mean_t KL(p_original(. | x_<=t) || p_converted(. | x_<=t))

    Adam with a linear decay changes the attention's weights only. Embeddings, norms and MLPs are
    shared with the teacher and stay as they are, and so do the rotary frequencies. Matrix products
    run in bfloat16 where the device is fast at it; weights, residual stream and losses are float32.

    Args:
        source: the original; it is loaded whole, once for teacher and student.
        config: the converted model's config.
        layers: the ``self_attn`` tensors of every converted layer.
        ids: token windows, cycled through if there are fewer than steps  # [windows, tokens]
        recipe: ``refine_steps``, one window each, and the peak rate ``refine_lr``.
        device: to train on; the first GPU, or the CPU.
        progress: shows one step of the training at a time.

    Returns:
        the refined tensors of every layer, float32.
    """
    keep_freed_memory()
    teacher = source_model(source, torch.float32).requires_grad_(False).to(device)
    set_attention(teacher, device.type)
    if bfloat16_is_fast(device.type):
        round_frozen(teacher)
    student = _student(source, config, teacher, layers, device)
    trained = choose_trainable(student, train_all=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress.task("Refining", recipe.refine_steps) as advance,
    ):
        trainer = HealingTrainer(
            model=student,
            teacher=LiveTeacher(teacher),
            stride=STRIDE,
            args=TrainingArguments(
                **common_arguments(Path(folder), recipe.refine_steps, device.type),
                per_device_train_batch_size=1,
                learning_rate=recipe.refine_lr,
                lr_scheduler_type="linear",
                warmup_steps=min(WARMUP_STEPS, recipe.refine_steps // 4),
                save_strategy="no",
                logging_strategy="no",
                seed=0,
            ),
            train_dataset=[{"input_ids": row} for row in ids],
            callbacks=[
                ShowProgress(advance, ids.shape[1]),
                StopWhenNotFinite(lambda: "choose a lower refine_lr"),
            ],
        )
        trainer.train()
    return [
        {
            name: trained.get(f"{source.family.attention_prefix(index)}{name}", tensor).detach()
            for name, tensor in tensors.items()
        }
        for index, tensors in enumerate(layers)
    ]


def _student(
    source: SourceCheckpoint,
    config: Any,
    teacher: Any,
    layers: list[dict[str, Tensor]],
    device: torch.device,
) -> Any:
    """Build the converted model: the teacher's own tensors, and copies of the converted ones."""
    with torch.device("meta"):
        student = source.family.converted_causal_lm(copy.deepcopy(config))
    set_attention(student, device.type)
    family = source.family
    kept = [index for index, tensors in enumerate(layers) if not tensors]
    state = {
        name: tensor
        for name, tensor in teacher.state_dict().items()
        if not family.in_attention(name, kept)
    }
    for index, tensors in enumerate(layers):
        prefix = family.attention_prefix(index)
        state |= {prefix + name: tensor.float().clone() for name, tensor in tensors.items()}
    student.load_state_dict(state, strict=False, assign=True)
    family.set_rotary(student, family.rotary(teacher))
    student.tie_weights()
    return student
