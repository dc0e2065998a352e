"""The training of a healing: Trainer with what watches it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from conversion.errors import HealingError, first_line
from conversion.healing.callbacks import (
    RecordCurve,
    SaveInTime,
    ShowProgress,
    StopWhenNotFinite,
    UseRate,
    all_finite,
)
from conversion.healing.curve import LossCurve
from conversion.healing.memory_estimate import is_of_memory
from conversion.healing.recipe import HealingRecipe
from conversion.healing.resume import States, step
from conversion.healing.sharding import part, whole
from conversion.healing.teacher import Teacher
from conversion.healing.text import Packed, in_order
from conversion.healing.trainer import HealingTrainer
from conversion.runtime.progress import Progress
from vllm_mha2mla.errors import MHA2MLAError


class Training:
    """One training, from its last saved state if there is one.

    Args:
        student: the model, ready to learn.
        teacher: what it is held against.
        text: windows to train on, and held-out ones.
        recipe: how.
        arguments: Trainer's.
        states: where it saves, and what was measured before an interruption.
        curve: the loss curve.

    Attributes:
        before: figures on held-out text before the training.
        after: and after it, of the weights in the dtype they are written in.
    """

    def __init__(
        self,
        student: Any,
        teacher: Teacher | None,
        text: Packed,
        recipe: HealingRecipe,
        arguments: TrainingArguments,
        states: States,
        curve: LossCurve,
    ) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self._held_out = text.held_out
        self._states = states
        self._curve = curve
        self._save_minutes = recipe.save_minutes
        self._last = states.last()
        # By all processes before the first of them notes it.
        self._known = states.before
        self._begun = False
        windows = arguments.max_steps * arguments.gradient_accumulation_steps
        windows *= arguments.train_batch_size * arguments.world_size
        self._trainer = HealingTrainer(
            model=student,
            teacher=teacher,
            lm_weight=recipe.next_token_weight,
            hidden_weight=recipe.hidden_weight,
            stride=recipe.stride,
            args=arguments,
            train_dataset=[
                {"input_ids": text.ids[index]} for index in in_order(text.ids, windows, recipe.seed)
            ],
        )

    def run(
        self,
        dtypes: Mapping[str, torch.dtype],
        tensorboard: Path | None,
        tokens: int,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Train.

        Args:
            dtypes: in which tensors are written, by name.
            tensorboard: folder of TensorBoard's log, if there is to be one.
            tokens: per step, on all devices.
            progress: told about every step.

        Returns:
            in the process that writes, what was learned, by name, on the CPU.

        Raises:
            HealingError: the numbers ran away, or a state cannot be saved or read.
        """
        trainer = self._trainer
        with progress.task("Healing", trainer.args.max_steps) as advance:
            for callback in (
                UseRate(),
                _AtStart(self._begin),
                ShowProgress(advance, tokens),
                RecordCurve(self._curve),
                SaveInTime(self._save_minutes),
                StopWhenNotFinite(self._kept),
            ):
                trainer.add_callback(callback)
            if tensorboard is not None and trainer.args.should_save:
                trainer.add_callback(_tensorboard(tensorboard, self._last))
            with self._errors_of_states():
                trainer.train(resume_from_checkpoint=self._last and str(self._last))
        learned = {
            name: parameter.data
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad
        }
        for name, tensor in learned.items():
            mine = part(tensor)
            mine.copy_(mine.to(dtypes[name]))
        self.after = trainer.measure(self._held_out)
        if not all_finite(learned.values()) or not all(map(math.isfinite, self.after.values())):
            # The last state is of the last step: there is nothing to go on with.
            raise HealingError(
                "the trained weights are too large for what they are stored in, or predict NaN; "
                "begin again with --restart and a lower --lr"
            )
        found = {}
        for name, tensor in learned.items():
            # All processes put it together, one needs it.
            together = whole(tensor)
            if trainer.args.should_save:
                found[name] = together.to(dtypes[name]).cpu()
        return found

    def _begin(self) -> None:
        self._begun = True
        known = self._known
        self.before = self._trainer.measure(self._held_out) if known is None else known
        if known is None and self._trainer.args.should_save:
            self._states.note_before(self.before)

    def _kept(self) -> str:
        last = self._states.last()
        if last is None:
            return "nothing was saved yet; start again with a lower --lr"
        return (
            f"the state of step {step(last)} is kept in {last}; a lower --lr goes on from there, "
            "with --restart from the beginning"
        )

    @contextmanager
    def _errors_of_states(self) -> Iterator[None]:
        """What Trainer raises when a state cannot be read or written, as ours."""
        try:
            yield
        except MHA2MLAError:
            raise
        except (Exception, CheckpointException) as error:
            cause = _first(error)
            if is_of_memory(cause) or isinstance(cause, torch.distributed.DistError):
                raise
            reason = first_line(cause)
            if self._last is not None and not self._begun:
                raise HealingError(
                    f"{self._last}: cannot be read ({reason}); drop it with --restart"
                ) from error
            if not _is_of_writing(cause):
                raise
            raise HealingError(
                f"{self._states.folder}: a state cannot be saved ({reason}); free some space, and "
                "the same command goes on from the last one"
            ) from error


class _AtStart(TrainerCallback):
    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._action()


def _first(error: BaseException) -> BaseException:
    """Of a state that processes save or read together: the error of the first that failed."""
    if isinstance(error, CheckpointException):
        return next((failure for failure, _ in error.failures.values()), error)
    return error


def _is_of_writing(error: BaseException) -> bool:
    # safetensors and torch.save have no errors of their own for it.
    said = ("PytorchStreamWriter", "inline_container", "SafetensorError", "I/O error")
    return isinstance(error, OSError) or any(
        word in f"{type(error).__name__}: {error}" for word in said
    )


def _tensorboard(folder: Path, last: Path | None) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter

    purge = None if last is None else step(last) + 1
    callback: TrainerCallback = TensorBoardCallback(
        SummaryWriter(log_dir=str(folder), purge_step=purge)
    )
    return callback
