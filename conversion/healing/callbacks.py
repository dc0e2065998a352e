"""Trainer callbacks: progress, the loss curve, saving in time, and stopping at NaN."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from conversion.errors import TrainingError
from conversion.healing.curve import LossCurve
from conversion.healing.private_apis import set_learning_rate
from conversion.healing.sharding import local_part
from conversion.runtime.progress import Advance


class CallAtStart(TrainerCallback):
    """Calls a function once, before the first step."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Call it."""
        self._action()


class ShowProgress(TrainerCallback):
    """Advances a progress bar at every step, with the loss and the speed.

    Args:
        advance: advances the bar by one step.
        tokens: tokens per step, on all devices.
    """

    def __init__(self, advance: Advance, tokens: int) -> None:
        self._advance = advance
        self._tokens = tokens
        self._loss = math.nan
        self._start_time, self._first_step = 0.0, 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock; steps done before an interruption count as done."""
        state: TrainerState = args[1]
        self._start_time, self._first_step = time.monotonic(), state.global_step
        for _ in range(state.global_step):
            self._advance()

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Note the newest loss."""
        self._loss = logs.get("loss", self._loss)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        state: TrainerState = args[1]
        seconds = max(time.monotonic() - self._start_time, 1e-9)
        speed = (state.global_step - self._first_step) * self._tokens / seconds
        loss = f"loss {self._loss:.4f}, " if math.isfinite(self._loss) else ""
        self._advance(f"{loss}{speed:.0f} tokens/s")


class RecordCurve(TrainerCallback):
    """Keeps the loss curve on disk up to date, from the first process.

    Args:
        curve: the file.
    """

    def __init__(self, curve: LossCurve) -> None:
        self._curve = curve

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop points logged after the training checkpoint: those steps are trained again."""
        if state.is_world_process_zero:
            self._curve.rewrite(state.log_history)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Append the newest point."""
        if state.is_world_process_zero:
            self._curve.append(state.log_history[-1])


class SaveInTime(TrainerCallback):
    """Saves every ``save_steps`` steps, and whenever the last save is older than ``minutes``.

    Args:
        minutes: the most training time an interruption may lose, rounded up to the next logged
            step.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._last_save = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, and use today's ``save_steps`` where a checkpoint has another."""
        state.save_steps = int(args.save_steps)
        self._last_save = time.monotonic()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Restart the clock, whatever asked for the save."""
        self._last_save = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a save at a logged step, in all processes if it is time in any of them."""
        if state.global_step % args.logging_steps:
            return
        late = int(time.monotonic() - self._last_save > self._seconds)
        if int(reduce(torch.tensor(late, device=args.device), "sum")):
            control.should_save = True


class UseLearningRate(TrainerCallback):
    """Resumes with the learning rate of this run where a training checkpoint has another."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Rescale the schedule; without an interruption this changes nothing."""
        set_learning_rate(optimizer, lr_scheduler, args.learning_rate)


class StopWhenNotFinite(TrainerCallback):
    """Stops before NaN or infinity reaches the weights, or a training checkpoint.

    Add it after the callbacks that ask for saves: it looks at ``control.should_save``.

    Args:
        way_out: makes the end of the message: what was saved, and what to do.
    """

    def __init__(self, way_out: Callable[[], str]) -> None:
        self._way_out = way_out

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Check every gradient; a loss that is not finite makes such gradients too."""
        gradients = (parameter.grad for parameter in model.parameters())
        if not all_finite(gradient for gradient in gradients if gradient is not None):
            raise TrainingError(
                f"step {state.global_step + 1}: loss or gradients are NaN or infinite; "
                f"{self._way_out()}"
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Check weights that are about to be saved: a finite gradient can make a step too long."""
        if control.should_save and not all_finite(p for p in model.parameters() if p.requires_grad):
            raise TrainingError(
                f"step {state.global_step}: weights are NaN or infinite; {self._way_out()}"
            )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """True if no process's part of the tensors has NaN or infinity. All processes call it."""
    parts = [local_part(tensor) for tensor in tensors]
    bad = sum(int(not part.isfinite().all()) for part in parts)
    return int(reduce(torch.tensor(bad, device=parts[0].device), "sum")) == 0
