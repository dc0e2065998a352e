"""A healing: from checkpoint, teacher and text to a checkpoint of the same kind."""

import gc
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from conversion.checkpoint.staging import check_output
from conversion.errors import MissingExtraError, OutputError, UsageError
from conversion.healing.curve import LossCurve
from conversion.healing.launch import check_launch, is_sharded, training_device, world_size
from conversion.healing.memory_estimate import memory_errors
from conversion.healing.outcome import judge
from conversion.healing.pair import Pair
from conversion.healing.recipe import HealingRecipe
from conversion.healing.resume import TrainingCheckpoints
from conversion.healing.teacher import LiveTeacher, StoredTeacher, Teacher
from conversion.healing.teacher_cache import TeacherCache
from conversion.healing.text import HealingText, packed_windows
from conversion.healing.train import Training
from conversion.healing.trainer_arguments import healing_arguments
from conversion.healing.write import healed_provenance, write_healed
from conversion.runtime.memory import keep_freed_memory, return_freed_memory
from conversion.runtime.numbers import ceil_div
from conversion.runtime.progress import Progress
from conversion.text.tokens import check_vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Healing:
    """A request to heal: inputs, output and how to run, but nothing that decides the result.

    Attributes:
        checkpoint: folder of a converted checkpoint.
        out: the folder to create.
        teacher: the original, as the converter takes it.
        text: files to train on; empty: the built-in text.
        cache_teacher: folder for the teacher's predictions; ``None``: run the teacher at every
            step.
        tensorboard: folder for a TensorBoard log; ``None``: no log.
        device: ``cpu`` or ``cuda``; ``None``: GPUs where there are any.
        restart: drop what an interrupted healing into the same folder left.
        overwrite: replace an existing checkpoint.
    """

    checkpoint: Path
    out: Path
    teacher: str
    text: tuple[Path, ...]
    cache_teacher: Path | None = None
    tensorboard: Path | None = None
    device: str | None = None
    restart: bool = False
    overwrite: bool = False


def heal(request: Healing, recipe: HealingRecipe, progress: Progress) -> None:
    """Train a converted checkpoint and write the result to ``request.out``.

    1. Read text, checkpoint and teacher; estimate the memory.
    2. Store the teacher's predictions, if ``cache_teacher`` says so.
    3. Train with transformers' Trainer; on several devices under ``accelerate launch``. Training
       checkpoints go to ``.OUT.healing``, and the same call resumes from the last one.
    4. Write the trained weights, all others as they were, and extend the provenance. If the
       trained weights do worse on held-out text, the weights from before are written instead
       (``recipe.keep``).

    Args:
        request: inputs, output and how to run.
        recipe: settings that decide the result.
        progress: shows stored predictions and training steps.

    Raises:
        CheckpointError, SourceError, TextError, UsageError, RecipeError, MissingExtraError,
            OutputError, TrainingError: with the way out.
    """
    inputs = (request.teacher, str(request.checkpoint), *map(str, request.text))
    check_output(request.out, request.overwrite, *inputs)
    _check_options(request, recipe)
    device = training_device(request.device)
    pair = Pair(request.checkpoint, request.teacher, recipe, device)
    pair.checkpoint.check_assets()
    text = packed_windows(pair.tokenizer, request.text, recipe)
    check_vocabulary(str(request.checkpoint), pair.config.vocab_size, text.ids, text.held_out)
    checkpoints = TrainingCheckpoints(request.out)
    step_tokens = recipe.window * recipe.batch_size * recipe.accumulation * world_size()
    steps = max(1, recipe.tokens // step_tokens)
    stored = request.cache_teacher is not None
    arguments = healing_arguments(recipe, checkpoints.folder, steps, device)
    if not arguments.should_save:
        progress = Progress(None)
    passes = steps * step_tokens / text.ids.numel()
    logger.info("%d steps of %d tokens, %.1f times the text", steps, step_tokens, passes)
    pair.check_memory(stored)
    # A sharded model gathers and frees layer after layer. If the process kept that memory, it would
    # have holes that the next layer rarely fits.
    if is_sharded():
        return_freed_memory()
    else:
        keep_freed_memory()
    run = _run_identity(pair, text, recipe, arguments, stored)
    claimed = checkpoints.claimed(run, request.restart) if arguments.should_save else nullcontext()
    with memory_errors(), claimed:
        if arguments.should_save:
            checkpoints.record_rate(recipe.lr)
        PartialState().wait_for_everyone()
        teacher, model = _teacher(pair, recipe, request, text, arguments, progress)
        student = pair.load_student(arguments.device, model)
        curve = LossCurve(checkpoints.folder, step_tokens)
        training = Training(student, teacher, text, recipe, arguments, checkpoints, curve)
        dtypes = {name: info.dtype for name, info in pair.checkpoint.tensors.items()}
        trained = training.run(dtypes, request.tensorboard, step_tokens, progress)
        if arguments.should_save:
            before, after = training.before, training.after
            outcome = judge(recipe, before, after)
            provenance = healed_provenance(
                *(pair, recipe, text, steps * step_tokens, checkpoints.rates),
                *(stored, before, after, outcome.kept),
            )
            changed = trained if outcome.kept == "end" else {}
            write_healed(pair, changed, provenance, curve, request.out, request.overwrite)
            checkpoints.remove()
            for name, value in before.items():
                logger.info("%s on held-out text: %.4f to %.4f", name, value, after[name])
            if outcome.worse:
                logger.warning(outcome.warning(request.out))
        PartialState().wait_for_everyone()


def _run_identity(
    pair: Pair,
    text: HealingText,
    recipe: HealingRecipe,
    arguments: TrainingArguments,
    stored: bool,
) -> dict[str, Any]:
    """All that must be the same for a run to resume, by names that fit an error message."""
    return {
        # Not the rate: a lower one is the way out where numbers ran away. Nor how often to save,
        # nor which weights to keep, which is decided at the end.
        "recipe": recipe.model_dump(exclude={"lr", "keep", "save_steps", "save_minutes"}),
        "checkpoint": pair.checkpoint.fingerprint(),
        "teacher": pair.source.fingerprint(),
        "text": text.fingerprint,
        "steps": arguments.max_steps,
        "number of processes": world_size(),
        "way of holding the model": "sharded" if is_sharded() else "whole",
        "way of asking the teacher": "stored" if stored else "asked",
        "precision": "bfloat16" if arguments.bf16 else "float32",
    }


def _check_options(request: Healing, recipe: HealingRecipe) -> None:
    if request.cache_teacher is not None and recipe.hidden_weight:
        raise UsageError(
            "--cache-teacher: hidden states are not stored; leave it out or set hidden_weight to 0"
        )
    if request.cache_teacher is not None and not recipe.needs_teacher:
        raise UsageError(
            f"--cache-teacher: objective {recipe.objective} uses no teacher; leave it out"
        )
    check_launch()
    for option, folder in (
        ("--cache-teacher", request.cache_teacher),
        ("--tensorboard", request.tensorboard),
    ):
        if folder is not None and folder.resolve().is_relative_to(request.out.resolve()):
            raise UsageError(
                f"{option} {folder}: {request.out} appears when it is whole; choose another folder"
            )
    if request.tensorboard is None:
        return
    if find_spec("tensorboard") is None:
        raise MissingExtraError(
            "--tensorboard needs tensorboard; install with: pip install tensorboard"
        )
    try:
        request.tensorboard.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--tensorboard {request.tensorboard}: {error.strerror}") from error


def _teacher(
    pair: Pair,
    recipe: HealingRecipe,
    request: Healing,
    text: HealingText,
    arguments: TrainingArguments,
    progress: Progress,
) -> tuple[Teacher | None, Any]:
    """Make the teacher; beside it its model, if that stays in memory."""
    if not recipe.needs_teacher:
        return None, None
    if request.cache_teacher is None:
        model = pair.load_teacher(arguments.device)
        return LiveTeacher(model, recipe.hidden_weight > 0), model
    cache = TeacherCache(request.cache_teacher, pair.source.fingerprint(), recipe.teacher_top_k)
    missing = cache.missing(torch.cat((text.ids, text.held_out)))
    # All processes list the missing windows before one writes: each takes its share of one list.
    PartialState().wait_for_everyone()
    if missing:
        size = cache.bytes_of(missing) / 2**30
        logger.info("up to %.2f GiB for %s", size, request.cache_teacher)
        # The same number for each process, because all run a sharded teacher together.
        count = arguments.world_size * ceil_div(len(missing), arguments.world_size)
        share = [
            missing[index % len(missing)]
            for index in range(arguments.process_index, count, arguments.world_size)
        ]
        cache.fill(share, pair.load_teacher(arguments.device), pair.autocast, progress)
        # A sharded model refers to itself: without this it would stay beside the student.
        gc.collect()
    PartialState().wait_for_everyone()
    return StoredTeacher(cache), None
