"""The training of a healing: Trainer with what watches it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from conversion.errors import HealingError
from conversion.healing.callbacks import RecordCurve, ShowProgress, StopWhenNotFinite
from conversion.healing.curve import LossCurve
from conversion.healing.recipe import HealingRecipe
from conversion.healing.states import States
from conversion.healing.teacher import Teacher
from conversion.healing.text import Packed
from conversion.healing.trainer import HealingTrainer
from conversion.progress import Progress


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
        after: and after it.
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
        weights = {"distill": 0.0, "lm": 1.0, "mix": recipe.lm_weight}
        self._trainer = HealingTrainer(
            model=student,
            teacher=teacher,
            lm_weight=weights[recipe.objective],
            hidden_weight=recipe.hidden_weight,
            stride=recipe.stride,
            args=arguments,
            train_dataset=[{"input_ids": row} for row in text.ids],
        )

    def run(self, tensorboard: Path | None, tokens: int, progress: Progress) -> dict[str, Tensor]:
        """Train.

        Args:
            tensorboard: folder of TensorBoard's log, if there is to be one.
            tokens: per step, on all devices.
            progress: told about every step.

        Returns:
            what was learned, by name, on the CPU; empty where another process writes.

        Raises:
            HealingError: the numbers ran away.
        """
        trainer = self._trainer
        names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
        last = self._states.last()
        with progress.task("Healing", trainer.args.max_steps) as advance:
            for callback in (
                _AtStart(self._measure_before),
                ShowProgress(advance, tokens),
                RecordCurve(self._curve),
                StopWhenNotFinite(self._kept),
            ):
                trainer.add_callback(callback)
            if tensorboard is not None:
                trainer.add_callback(_tensorboard(tensorboard))
            with _saving(self._states.folder):
                trainer.train(resume_from_checkpoint=None if last is None else str(last))
        self.after = trainer.measure(self._held_out)
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not trainer.args.should_save:
            return {}
        return {name: state[name].detach().cpu() for name in names}

    def _measure_before(self) -> None:
        known = self._states.before
        self.before = self._trainer.measure(self._held_out) if known is None else known
        if known is None and self._trainer.args.should_save:
            self._states.note_before(self.before)

    def _kept(self) -> str:
        last = self._states.last()
        kept = "nothing was saved yet" if last is None else f"the last good state is in {last}"
        return f"{kept}; start again with a lower --lr and --restart"


class _AtStart(TrainerCallback):
    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._action()


def _tensorboard(folder: Path) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter

    callback: TrainerCallback = TensorBoardCallback(SummaryWriter(log_dir=str(folder)))
    return callback


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """Trainer's own errors when a state cannot be written, as ours."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save has no error of its own.
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise HealingError(
            f"{folder}: a state cannot be saved ({str(error).splitlines()[0]}); free some space, "
            "and the same command goes on from the last one"
        ) from error
