"""Trainer's arguments for a healing, and for the refinement within a conversion."""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from conversion.healing.launch import check_distributed_type, is_sharded
from conversion.healing.private_apis import use_one_device
from conversion.healing.recipe import HealingRecipe
from conversion.healing.sharding import FSDP_CONFIG
from conversion.runtime.numbers import ceil_div
from conversion.runtime.precision import bfloat16_is_fast

BETAS = (0.9, 0.98)
# Upper bound of the number of points of a loss curve, roughly.
CURVE_POINTS = 500


def common_arguments(folder: Path, steps: int, device: str) -> dict[str, Any]:
    """Arguments that every training shares: AdamW, mixed precision, no reports but our own.

    Args:
        folder: the folder for training checkpoints.
        steps: number of optimiser steps.
        device: type of the device, ``cpu`` or ``cuda``.
    """
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "bf16": bfloat16_is_fast(device),
        "use_cpu": device == "cpu",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": device != "cpu",
        "ddp_find_unused_parameters": False,
    }


def healing_arguments(
    recipe: HealingRecipe, folder: Path, steps: int, device: str
) -> TrainingArguments:
    """Make the arguments of a healing: warm-up, constant rate, 1 - sqrt decay, as MHA2MLA.

    Args:
        recipe: batch size, learning rate, schedule and how often to save.
        folder: the folder for training checkpoints.
        steps: number of optimiser steps.
        device: type of the device, ``cpu`` or ``cuda``.

    Raises:
        UsageError: accelerate does not do here what it was launched for.
    """
    logging_steps = max(1, steps // CURVE_POINTS)
    arguments = TrainingArguments(
        **common_arguments(folder, steps, device),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": round(recipe.decay * steps),
            "decay_type": "1-sqrt",
        },
        warmup_steps=round(recipe.warmup * steps),
        logging_strategy="steps",
        logging_steps=logging_steps,
        save_strategy="steps",
        # A multiple of logging_steps: the mean loss of a point of the curve begins anew after an
        # interruption, so it must not span one.
        save_steps=ceil_div(recipe.save_steps, logging_steps) * logging_steps,
        save_total_limit=2,
        train_sampling_strategy="sequential",
        seed=recipe.seed,
        **(_sharding() if is_sharded() else {}),
    )
    check_distributed_type(arguments.distributed_state.distributed_type)
    use_one_device(arguments)
    return arguments


def _sharding() -> dict[str, Any]:
    return {
        "fsdp": True,
        "fsdp_config": dict(FSDP_CONFIG),
        # Otherwise every device keeps the gradients of the whole model until the last batch of a
        # step.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }
