"""States of a healing that is under way, to go on from after any end."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from conversion.checkpoint.staging import locked
from conversion.errors import HealingError

logger = logging.getLogger(__name__)

RUN = "run.json"


class States:
    """``.OUT.healing`` beside ``OUT``: what is being done, and Trainer's saved states.

    Args:
        out: the checkpoint that is being made.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.parent / f".{out.name}.healing"
        self._out = out

    @contextmanager
    def claimed(self, run: dict[str, Any], restart: bool) -> Iterator[None]:
        """Make the folder this run's, or go on with it; other processes are kept out.

        What ends the block before anything was saved leaves no folder.

        Args:
            run: all that decides what comes out.
            restart: whether another run's states may go.

        Raises:
            HealingError: another run's states are there.
            OutputError: another process is at it.
        """
        with self._errors():
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, self._out):
            noted = self._noted()
            if restart or noted is None:
                with self._errors():
                    self._begin(run)
            elif noted["run"] != run:
                changed = ", ".join(key for key in run if noted["run"].get(key) != run[key])
                raise HealingError(
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
                    logger.info("%s: kept; the same command goes on from step %d", last, step(last))
                raise

    @property
    def before(self) -> dict[str, float] | None:
        """What was measured before training; ``None``: not yet."""
        return (self._noted() or {}).get("before")

    def note_before(self, figures: dict[str, float]) -> None:
        """Keep what was measured before training, for when it goes on after an interruption."""
        self._note((self._noted() or {}) | {"before": figures})

    def last(self) -> Path | None:
        """The last state that was saved whole; what a killed process left half-written goes."""
        for folder in self._saved():
            if _is_whole(folder):
                return folder
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def remove(self) -> None:
        """All is done."""
        # First what makes it a run: half a folder must not look like one.
        (self.folder / RUN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HealingError(
                f"{self.folder}: cannot be written ({error.strerror}); free some space or choose "
                "another folder"
            ) from error

    def _begin(self, run: dict[str, Any]) -> None:
        self._empty()
        try:
            self._note({"run": run})
        except OSError:
            self.remove()
            raise

    def _saved(self) -> list[Path]:
        found = [
            folder
            for folder in self.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
            if folder.name.rpartition("-")[2].isdecimal()
        ]
        return sorted(found, key=step, reverse=True)

    def _noted(self) -> dict[str, Any] | None:
        try:
            noted = json.loads((self.folder / RUN).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return noted if isinstance(noted, dict) else None

    def _note(self, noted: dict[str, Any]) -> None:
        staged = self.folder / f"{RUN}.partial"
        staged.write_text(json.dumps(noted, indent=2) + "\n", "utf-8")
        staged.replace(self.folder / RUN)

    def _empty(self) -> None:
        (self.folder / RUN).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def step(folder: Path) -> int:
    """After which step a state was saved."""
    return int(folder.name.rpartition("-")[2])


def _is_whole(folder: Path) -> bool:
    # Trainer writes it last.
    try:
        state = json.loads((folder / TRAINER_STATE_NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(state.get("global_step") == step(folder))
