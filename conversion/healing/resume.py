"""Training checkpoints of a healing under way, so that it can resume after any interruption."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from conversion.checkpoint.locks import locked
from conversion.errors import OutputError, TrainingError

logger = logging.getLogger(__name__)

RUN = "run.json"


class TrainingCheckpoints:
    """The folder ``.OUT.healing`` beside ``OUT``: ``run.json`` and Trainer's ``checkpoint-N``.

    ``run.json`` has three keys: ``run``, all that decides the result; ``before``, the figures
    measured before the training; and ``rates``, the peak learning rates, by the step from which on
    each held.

    Args:
        out: the converted checkpoint that is being made.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.parent / f".{out.name}.healing"
        self._out = out

    @contextmanager
    def claimed(self, run: dict[str, Any], restart: bool) -> Iterator[None]:
        """Start this run in the folder or resume it; other processes are locked out meanwhile.

        If the block fails before anything was saved, the folder is removed.

        Args:
            run: all that decides the result, by names that fit an error message.
            restart: drop what another run left.

        Raises:
            TrainingError: another run left training checkpoints, and ``restart`` is False.
            OutputError: another process uses the folder.
        """
        with self._write_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder.with_name(f"{self.folder.name}.lock"), self._out):
            record = self._read_record()
            if restart or record is None:
                with self._write_errors():
                    self._start(run)
            elif record["run"] != run:
                changed = ", ".join(key for key in run if record["run"].get(key) != run[key])
                raise TrainingError(
                    f"{self.folder}: holds an interrupted healing with another {changed}; go on "
                    "with the same options, or drop it with --restart"
                )
            try:
                yield
            except BaseException:
                last = self.last()
                if last is None:
                    self.remove()
                else:
                    logger.info(
                        "%s: kept; the same command goes on from step %d", last, step_of(last)
                    )
                raise

    @property
    def before(self) -> dict[str, float] | None:
        """Figures measured before the training; ``None``: not measured yet."""
        return (self._read_record() or {}).get("before")

    def record_before(self, figures: dict[str, float]) -> None:
        """Keep the figures measured before the training, for a resumed run."""
        self._write_record((self._read_record() or {}) | {"before": figures})

    @property
    def rates(self) -> dict[int, float]:
        """Peak learning rates so far, by the step from which on each held."""
        stored = (self._read_record() or {}).get("rates", {})
        return {int(step): float(rate) for step, rate in stored.items()}

    def record_rate(self, rate: float) -> None:
        """Keep the peak learning rate that holds from the last training checkpoint on."""
        last = self.last()
        start = 0 if last is None else step_of(last)
        # Steps behind the checkpoint are trained again, and their rates forgotten.
        rates = {step: before for step, before in self.rates.items() if step < start}
        if list(rates.values())[-1:] != [rate]:
            rates[start] = rate
        self._write_record((self._read_record() or {}) | {"rates": rates})

    def last(self) -> Path | None:
        """The newest complete training checkpoint; incomplete ones are deleted on the way."""
        for folder in self._newest_first():
            if _is_complete(folder):
                return folder
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def remove(self) -> None:
        """Delete the folder."""
        # First the file that makes it a run: half a folder must not look like one.
        (self.folder / RUN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written ({error.strerror}); free some space or choose "
                "another folder"
            ) from error

    def _start(self, run: dict[str, Any]) -> None:
        self._clear()
        try:
            self._write_record({"run": run})
        except OSError:
            self.remove()
            raise

    def _newest_first(self) -> list[Path]:
        folders = [
            folder
            for folder in self.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
            if folder.name.rpartition("-")[2].isdecimal()
        ]
        return sorted(folders, key=step_of, reverse=True)

    def _read_record(self) -> dict[str, Any] | None:
        try:
            record = json.loads((self.folder / RUN).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def _write_record(self, record: dict[str, Any]) -> None:
        staged = self.folder / f"{RUN}.partial"
        staged.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        staged.replace(self.folder / RUN)

    def _clear(self) -> None:
        (self.folder / RUN).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def step_of(folder: Path) -> int:
    """The step after which a training checkpoint was saved."""
    return int(folder.name.rpartition("-")[2])


def _is_complete(folder: Path) -> bool:
    # Trainer writes this file last.
    try:
        state = json.loads((folder / TRAINER_STATE_NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(state.get("global_step") == step_of(folder))
