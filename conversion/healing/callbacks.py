"""What is watched while a model trains: progress, the loss curve, numbers that run away."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from conversion.errors import HealingError
from conversion.healing.curve import LossCurve
from conversion.healing.sharding import part
from conversion.runtime.progress import Advance


class ShowProgress(TrainerCallback):
    """Advances a bar by every step, with the loss and the speed.

    Args:
        advance: the bar's.
        tokens: per step, on all devices.
    """

    def __init__(self, advance: Advance, tokens: int) -> None:
        self._advance = advance
        self._tokens = tokens
        self._loss = math.nan
        self._started = self._first = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock; steps of an interrupted run are done already."""
        state: TrainerState = args[1]
        self._started, self._first = time.monotonic(), state.global_step
        for _ in range(state.global_step):
            self._advance()

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Note the newest loss."""
        self._loss = logs.get("loss", self._loss)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """One more step."""
        state: TrainerState = args[1]
        seconds = max(time.monotonic() - self._started, 1e-9)
        speed = (state.global_step - self._first) * self._tokens / seconds
        loss = f"loss {self._loss:.4f}, " if math.isfinite(self._loss) else ""
        self._advance(f"{loss}{speed:.0f} tokens/s")


class RecordCurve(TrainerCallback):
    """Keeps the loss curve on disk up to date.

    Args:
        curve: where it is kept.
    """

    def __init__(self, curve: LossCurve) -> None:
        self._curve = curve

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What an interrupted run logged after its last saved state is trained again."""
        if state.is_world_process_zero:
            self._curve.rewrite(state.log_history)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One more point."""
        if state.is_world_process_zero:
            self._curve.append(state.log_history[-1])


class SaveInTime(TrainerCallback):
    """Saves a state when the last one is long ago, however few steps that is, and every so many.

    Args:
        minutes: that an interruption may cost, beside a point of the loss curve.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._saved = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; a saved state has the steps of before."""
        state.save_steps = int(args.save_steps)
        self._saved = time.monotonic()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Start it again, whyever the state was saved."""
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a state where the curve has a point, in all processes if it is time in one."""
        if state.global_step % args.logging_steps:
            return
        late = torch.tensor(int(time.monotonic() - self._saved > self._seconds), device=args.device)
        if int(reduce(late, "sum")):
            control.should_save = True


class UseRate(TrainerCallback):
    """Goes on with the learning rate of now, where a saved state has that of before."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Change it if it differs."""
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        for index, base in enumerate(schedule.base_lrs):
            group = optimizer.param_groups[index]
            group["lr"] *= args.learning_rate / base
            group["initial_lr"] = schedule.base_lrs[index] = args.learning_rate
            schedule._last_lr[index] = group["lr"]


class StopWhenNotFinite(TrainerCallback):
    """Stops before NaN or infinite numbers get into the weights, or from there into a state.

    Added after what asks for states.

    Args:
        kept: says what is kept and the way out, for the message.
    """

    def __init__(self, kept: Callable[[], str]) -> None:
        self._kept = kept

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Look at every gradient: a loss that is not finite gives such gradients too."""
        gradients = (parameter.grad for parameter in model.parameters())
        if not all_finite(gradient for gradient in gradients if gradient is not None):
            raise HealingError(
                f"step {state.global_step + 1}: loss or gradients are NaN or infinite; "
                f"{self._kept()}"
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Look at what is about to be saved: finite gradients can make a step too long."""
        if control.should_save and not all_finite(p for p in model.parameters() if p.requires_grad):
            raise HealingError(
                f"step {state.global_step}: weights are NaN or infinite; {self._kept()}"
            )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether there is no NaN and no infinite number, in any process's part of the tensors."""
    parts = [part(tensor) for tensor in tensors]
    bad = sum(int(not tensor.isfinite().all()) for tensor in parts)
    return int(reduce(torch.tensor(bad, device=parts[0].device), "sum")) == 0
