"""A healing, from checkpoint, teacher and text to a checkpoint of the same kind."""

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
from conversion.errors import HealingError
from conversion.healing.curve import LossCurve
from conversion.healing.launch import check_launch, processes, sharded
from conversion.healing.memory_estimate import memory_errors
from conversion.healing.outcome import judge
from conversion.healing.pair import Pair
from conversion.healing.recipe import HealingRecipe
from conversion.healing.resume import States
from conversion.healing.teacher import LiveTeacher, StoredTeacher, Teacher
from conversion.healing.teacher_cache import TeacherCache
from conversion.healing.text import Packed, packed_windows
from conversion.healing.train import Training
from conversion.healing.trainer_arguments import healing_arguments, rounds_products
from conversion.healing.write import healed_provenance, write_healed
from conversion.runtime.memory import keep_freed_memory, return_freed_memory
from conversion.runtime.progress import Progress
from conversion.text.tokens import check_vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Healing:
    """What to heal and how to run, as opposed to what it makes.

    Attributes:
        checkpoint: folder of a converted checkpoint.
        out: the folder to create.
        teacher: the original, as the converter takes it.
        text: files to train on.
        cache_teacher: folder for the teacher's predictions; ``None``: asked at every step.
        tensorboard: folder for TensorBoard's log; ``None``: none.
        restart: whether states of an interrupted healing into the same folder are dropped.
        overwrite: whether an existing checkpoint may be replaced.
    """

    checkpoint: Path
    out: Path
    teacher: str
    text: tuple[Path, ...]
    cache_teacher: Path | None = None
    tensorboard: Path | None = None
    restart: bool = False
    overwrite: bool = False


def heal(asked: Healing, recipe: HealingRecipe, progress: Progress) -> None:
    """Train a converted checkpoint and write the result to ``asked.out``.

    1. Read text, checkpoint and teacher; work out the memory.
    2. Store the teacher's predictions if they are to be stored.
    3. Train, in transformers' Trainer; several devices under ``accelerate launch``. States are
       saved in ``.OUT.healing``, and the same call goes on from the last one.
    4. Write: the learned weights, the others as they were, the provenance extended. If held-out
       text says that the learned weights are worse than those before, these are kept instead.

    Args:
        asked: what and how.
        recipe: what to make.
        progress: told about every step.

    Raises:
        HealingError, CheckpointError, SourceError, CalibrationError, OutputError: with the way out.
    """
    check_output(asked.out, asked.overwrite, asked.teacher, str(asked.checkpoint))
    _check_options(asked, recipe)
    pair = Pair(asked.checkpoint, asked.teacher, recipe)
    text = packed_windows(pair.tokenizer, asked.text, recipe)
    check_vocabulary(str(asked.checkpoint), pair.config.vocab_size, text.ids, text.held_out)
    states = States(asked.out)
    step_tokens = recipe.window * recipe.batch_size * recipe.accumulation * processes()
    steps = max(1, recipe.tokens // step_tokens)
    stored = asked.cache_teacher is not None
    arguments = healing_arguments(recipe, states.folder, steps)
    if not arguments.should_save:
        progress = Progress(None)
    passes = steps * step_tokens / text.ids.numel()
    logger.info("%d steps of %d tokens, %.1f times the text", steps, step_tokens, passes)
    pair.check_memory(stored)
    run = {
        # A run may go on with another rate: the way out when its numbers ran away. Which weights
        # are kept is decided at its end.
        "recipe": recipe.model_dump(exclude={"lr", "keep", "save_steps", "save_minutes"}),
        "checkpoint": pair.checkpoint.fingerprint(),
        "teacher": pair.source.fingerprint(),
        "text": text.fingerprint,
        "steps": steps,
        "number of processes": processes(),
        "way of holding the model": "sharded" if sharded() else "whole",
        "way of asking the teacher": "stored" if stored else "asked",
        "precision": "bfloat16" if rounds_products() else "float32",
    }
    # Every layer gathered and freed would leave holes that the next one rarely fits.
    if sharded():
        return_freed_memory()
    else:
        keep_freed_memory()
    claimed = states.claimed(run, asked.restart) if arguments.should_save else nullcontext()
    with memory_errors(), claimed:
        PartialState().wait_for_everyone()
        teacher, model = _teacher(pair, recipe, asked, text, arguments, progress)
        student = pair.load_student(arguments.device, model)
        curve = LossCurve(states.folder, step_tokens)
        training = Training(student, teacher, text, recipe, arguments, states, curve)
        dtypes = {name: info.dtype for name, info in pair.checkpoint.tensors.items()}
        learned = training.run(dtypes, asked.tensorboard, step_tokens, progress)
        if arguments.should_save:
            tokens = steps * step_tokens
            before, after = training.before, training.after
            outcome = judge(recipe, before, after)
            if outcome.kept == "start":
                learned = {}
            provenance = healed_provenance(
                pair, recipe, text, tokens, stored, before, after, outcome.kept
            )
            write_healed(pair, learned, provenance, curve, asked.out, asked.overwrite)
            states.remove()
            for name, value in before.items():
                logger.info("%s on held-out text: %.4f to %.4f", name, value, after[name])
            if outcome.worse:
                logger.warning(outcome.warning(asked.out))
        PartialState().wait_for_everyone()


def _check_options(asked: Healing, recipe: HealingRecipe) -> None:
    if asked.cache_teacher is not None and recipe.hidden_weight:
        raise HealingError(
            "--cache-teacher: hidden states are not stored; leave it out or set hidden_weight to 0"
        )
    if asked.cache_teacher is not None and not recipe.needs_teacher:
        raise HealingError(f"--cache-teacher: objective {recipe.objective} asks no teacher")
    check_launch()
    for option, folder in (
        ("--cache-teacher", asked.cache_teacher),
        ("--tensorboard", asked.tensorboard),
    ):
        if folder is not None and folder.resolve().is_relative_to(asked.out.resolve()):
            raise HealingError(
                f"{option} {folder}: {asked.out} appears when it is whole; choose another folder"
            )
    if asked.tensorboard is None:
        return
    if find_spec("tensorboard") is None:
        raise HealingError("--tensorboard needs tensorboard; install with: pip install tensorboard")
    try:
        asked.tensorboard.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HealingError(f"--tensorboard {asked.tensorboard}: {error.strerror}") from error


def _teacher(
    pair: Pair,
    recipe: HealingRecipe,
    asked: Healing,
    text: Packed,
    arguments: TrainingArguments,
    progress: Progress,
) -> tuple[Teacher | None, Any]:
    """The teacher, and its model if that stays in memory."""
    if not recipe.needs_teacher:
        return None, None
    if asked.cache_teacher is None:
        model = pair.load_teacher(arguments.device)
        return LiveTeacher(model, recipe.hidden_weight > 0), model
    cache = TeacherCache(asked.cache_teacher, pair.source.fingerprint(), recipe.teacher_top_k)
    missing = cache.missing(torch.cat((text.ids, text.held_out)))
    # All have looked before one writes: each takes its part of the same list.
    PartialState().wait_for_everyone()
    if missing:
        logger.info("up to %.2f GiB for %s", cache.bytes_of(missing) / 2**30, asked.cache_teacher)
        # As many for each process: of a sharded teacher all ask together.
        count = arguments.world_size * -(-len(missing) // arguments.world_size)
        mine = [
            missing[index % len(missing)]
            for index in range(arguments.process_index, count, arguments.world_size)
        ]
        cache.fill(mine, pair.load_teacher(arguments.device), pair.products, progress)
        # A sharded model refers to itself: it would stay beside the student.
        gc.collect()
    PartialState().wait_for_everyone()
    return StoredTeacher(cache), None
