"""The training of a healing: Trainer, its callbacks, and its errors as ours."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from conversion.errors import OutputError, TrainingError, first_line
from conversion.healing.callbacks import (
    CallAtStart,
    RecordCurve,
    SaveInTime,
    ShowProgress,
    StopWhenNotFinite,
    UseLearningRate,
    all_finite,
)
from conversion.healing.curve import LossCurve
from conversion.healing.recipe import HealingRecipe
from conversion.healing.resume import TrainingCheckpoints, step_of
from conversion.healing.sharding import gathered, local_part
from conversion.healing.teacher import Teacher
from conversion.healing.text import HealingText, training_order
from conversion.healing.trainer import HealingTrainer
from conversion.runtime.memory_errors import is_out_of_memory
from conversion.runtime.progress import Progress
from vllm_mha2mla.errors import MHA2MLAError


class Training:
    """One training, resumed from its last training checkpoint if there is one.

    Args:
        student: the model, ready to learn.
        teacher: the model to follow; ``None``: train on the text only.
        text: windows to train on, and held-out ones.
        recipe: losses, order of the windows and how often to save.
        arguments: Trainer's.
        checkpoints: the folder it saves to and resumes from.
        curve: the loss curve.

    Attributes:
        before: figures on held-out text before the training.
        after: figures after it, of the weights in the dtype they are written in.
    """

    def __init__(
        self,
        student: Any,
        teacher: Teacher | None,
        text: HealingText,
        recipe: HealingRecipe,
        arguments: TrainingArguments,
        checkpoints: TrainingCheckpoints,
        curve: LossCurve,
    ) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self._held_out = text.held_out
        self._checkpoints = checkpoints
        self._curve = curve
        self._save_minutes = recipe.save_minutes
        self._last = checkpoints.last()
        # Every process reads this before the first one may write it: all take the same branch in
        # _measure_before, whose measuring they do together.
        self._known_before = checkpoints.before
        self._started = False
        windows = arguments.max_steps * arguments.gradient_accumulation_steps
        windows *= arguments.train_batch_size * arguments.world_size
        order = training_order(text.ids, windows, recipe.seed)
        self._trainer = HealingTrainer(
            model=student,
            teacher=teacher,
            lm_weight=recipe.next_token_weight,
            hidden_weight=recipe.hidden_weight,
            stride=recipe.stride,
            args=arguments,
            train_dataset=[{"input_ids": text.ids[index]} for index in order],
        )

    def run(
        self,
        dtypes: Mapping[str, torch.dtype],
        tensorboard: Path | None,
        step_tokens: int,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Train to the end.

        Args:
            dtypes: dtype that each tensor is written in, by name.
            tensorboard: folder for a TensorBoard log; ``None``: no log.
            step_tokens: tokens per step, on all devices.
            progress: shows one step of the training at a time.

        Returns:
            the trained tensors by name, on the CPU, in the process that writes; in others nothing.

        Raises:
            TrainingError: NaN or infinity, or a training checkpoint cannot be read.
            OutputError: a training checkpoint cannot be written.
        """
        trainer = self._trainer
        with progress.task("Healing", trainer.args.max_steps) as advance:
            for callback in (
                UseLearningRate(),
                CallAtStart(self._measure_before),
                ShowProgress(advance, step_tokens),
                RecordCurve(self._curve),
                SaveInTime(self._save_minutes),
                StopWhenNotFinite(self._way_out),
            ):
                trainer.add_callback(callback)
            if tensorboard is not None and trainer.args.should_save:
                trainer.add_callback(_tensorboard(tensorboard, self._last))
            with self._checkpoint_errors():
                trainer.train(resume_from_checkpoint=self._last and str(self._last))
        trained = {
            name: parameter.data
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad
        }
        for name, tensor in trained.items():
            part = local_part(tensor)
            part.copy_(part.to(dtypes[name]))
        self.after = trainer.measure(self._held_out)
        if not all_finite(trained.values()) or not all(map(math.isfinite, self.after.values())):
            # The last training checkpoint is of the last step: there is nothing to resume from.
            raise TrainingError(
                "the trained weights are too large for what they are stored in, or predict NaN; "
                "begin again with --restart and a lower --lr"
            )
        result = {}
        for name, tensor in trained.items():
            # Every process takes part in gathering, only one needs the result.
            whole = gathered(tensor)
            if trainer.args.should_save:
                result[name] = whole.to(dtypes[name]).cpu()
        return result

    def _measure_before(self) -> None:
        self._started = True
        if self._known_before is not None:
            self.before = self._known_before
            return
        self.before = self._trainer.measure(self._held_out)
        if self._trainer.args.should_save:
            self._checkpoints.record_before(self.before)

    def _way_out(self) -> str:
        last = self._checkpoints.last()
        if last is None:
            return "nothing was saved yet; start again with a lower --lr"
        return (
            f"the training checkpoint of step {step_of(last)} is kept in {last}; a lower --lr goes "
            "on from there, with --restart from the beginning"
        )

    @contextmanager
    def _checkpoint_errors(self) -> Iterator[None]:
        """Turn Trainer's errors about unreadable or unwritable checkpoints into ours."""
        try:
            yield
        except MHA2MLAError:
            raise
        except (Exception, CheckpointException) as error:
            cause = _first_cause(error)
            if is_out_of_memory(cause) or isinstance(cause, torch.distributed.DistError):
                raise
            reason = first_line(cause)
            if self._last is not None and not self._started:
                raise TrainingError(
                    f"{self._last}: cannot be read ({reason}); drop it with --restart"
                ) from error
            if not _is_write_error(cause):
                raise
            raise OutputError(
                f"{self._checkpoints.folder}: a training checkpoint cannot be saved ({reason}); "
                "free some space, and the same command goes on from the last one"
            ) from error


def _first_cause(error: BaseException) -> BaseException:
    """The first process's error, where several wrote or read a checkpoint together."""
    if isinstance(error, CheckpointException):
        return next((failure for failure, _ in error.failures.values()), error)
    return error


def _is_write_error(error: BaseException) -> bool:
    # safetensors and torch.save have no errors of their own for it.
    signs = ("PytorchStreamWriter", "inline_container", "SafetensorError", "I/O error")
    return isinstance(error, OSError) or any(
        sign in f"{type(error).__name__}: {error}" for sign in signs
    )


def _tensorboard(folder: Path, last: Path | None) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter

    purge = None if last is None else step_of(last) + 1
    callback: TrainerCallback = TensorBoardCallback(
        SummaryWriter(log_dir=str(folder), purge_step=purge)
    )
    return callback
