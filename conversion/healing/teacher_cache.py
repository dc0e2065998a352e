"""A teacher's predictions on disk, so that repeated healings compute them once."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from conversion.errors import OutputError, TrainingError
from conversion.runtime.progress import Progress
from conversion.text.tokens import fingerprint

TOKENS, LOG_P, REST = "tokens", "log_p", "rest"
# Per kept prediction an int32 and a float16; per position a float32.
PREDICTION_BYTES, POSITION_BYTES = 6, 4


class TeacherCache:
    """One file per window: the ``k`` likeliest tokens at every position and the remaining mass.

    Args:
        folder: the folder of the cache, created if missing; several teachers may share it.
        fingerprint: the teacher's.
        k: predictions kept per position.

    Raises:
        OutputError: the folder cannot be created.
    """

    def __init__(self, folder: Path, fingerprint: str, k: int) -> None:
        self.k = k
        self._folder = folder / f"{fingerprint[:16]}-top{k}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"--cache-teacher {folder}: {error.strerror}") from error

    def missing(self, windows: Tensor) -> list[Tensor]:
        """List the windows that are not stored yet, each once.

        Args:
            windows: token ids  # [windows, window]

        Returns:
            token ids, each  # [window]
        """
        missing = {path.name: row for row in windows if not (path := self._path(row)).exists()}
        return list(missing.values())

    def bytes_of(self, windows: Sequence[Tensor]) -> int:
        """Size of these windows' predictions on disk."""
        return sum(row.numel() * (self.k * PREDICTION_BYTES + POSITION_BYTES) for row in windows)

    @torch.no_grad()
    def fill(
        self,
        windows: Sequence[Tensor],
        teacher: Any,
        autocast: Callable[[], Any],
        progress: Progress,
    ) -> None:
        """Compute and store predictions of windows; an interruption keeps those stored so far.

        Args:
            windows: token ids, each  # [window]
            teacher: the original as a model.
            autocast: makes the context that the teacher runs in.
            progress: shows one step per window.

        Raises:
            OutputError: a file cannot be written.
        """
        with progress.task("Storing the teacher's predictions", len(windows)) as advance:
            for row in windows:
                with autocast():
                    logits = teacher(input_ids=row[None].to(teacher.device), use_cache=False).logits
                p = logits[0].float().log_softmax(-1)  # [window, vocabulary]
                log_p, tokens = p.topk(min(self.k, p.shape[-1]), dim=-1)  # [window, k]
                self._write(row, tokens, log_p, (1 - log_p.exp().sum(-1)).clamp(min=0))
                advance()

    def _write(self, row: Tensor, tokens: Tensor, log_p: Tensor, rest: Tensor) -> None:
        path = self._path(row)
        staged = path.with_suffix(f".{os.getpid()}.partial")
        tensors = {TOKENS: tokens.int(), LOG_P: log_p.half(), REST: rest}
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, staged)
            staged.replace(path)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"--cache-teacher {self._folder.parent}: cannot be written ({error}); free some "
                "space, choose another folder, or leave the option out"
            ) from error
        finally:
            staged.unlink(missing_ok=True)

    def read(self, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read a window's predictions.

        Args:
            row: token ids  # [window]

        Returns:
            tokens and their log-probabilities  # [window, k] each
            probability of all other tokens  # [window]

        Raises:
            TrainingError: the file is missing or not readable.
        """
        path = self._path(row)
        try:
            tensors = load_file(path)
            return tensors[TOKENS].long(), tensors[LOG_P].float(), tensors[REST]
        except (OSError, SafetensorError, KeyError) as error:
            raise TrainingError(
                f"{path}: cannot be read ({error}); remove it and start again"
            ) from error

    def _path(self, row: Tensor) -> Path:
        name = fingerprint(row)[:32]
        return self._folder / f"{name}.safetensors"
