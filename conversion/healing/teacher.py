"""The teacher that a student follows: the original in memory, or its stored predictions."""

from typing import Any, Protocol

import torch
from torch import Tensor

from conversion.healing.losses import divergence, hidden_error, top_divergence
from conversion.healing.teacher_cache import TeacherCache


class Teacher(Protocol):
    """Compares a student's output with its own."""

    wants_hidden: bool
    """True if the student's hidden states are compared too."""

    def loss(self, student: Any, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the divergence of the predictions and the error of the hidden states.

        Args:
            student: the student's output, with logits at ``positions``.
            ids: the student's input  # [batch, tokens]
            positions: the positions to compare  # [positions]

        Returns:
            the divergence in nats, and the relative error; zero where hidden states are not
            compared.
        """
        ...


class LiveTeacher:
    """A model in memory that runs at every step.

    Args:
        model: the original; its weights are frozen here.
        hidden: compare hidden states too.
    """

    def __init__(self, model: Any, hidden: bool = False) -> None:
        self.model = model.requires_grad_(False).eval()
        self.wants_hidden = hidden

    @torch.no_grad()
    def _predict(self, ids: Tensor, positions: Tensor) -> Any:
        return self.model(
            input_ids=ids,
            logits_to_keep=positions,
            use_cache=False,
            output_hidden_states=self.wants_hidden,
        )

    def loss(self, student: Any, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both losses; see :meth:`Teacher.loss`."""
        teacher = self._predict(ids, positions)
        kl = divergence(student.logits.flatten(0, 1), teacher.logits.flatten(0, 1))
        if not self.wants_hidden:
            return kl, kl.new_zeros(())
        return kl, hidden_error(student.hidden_states[1:], teacher.hidden_states[1:])


class StoredTeacher:
    """Predictions on disk: the likeliest tokens of every position, and the remaining mass.

    Args:
        cache: holds every window that will be trained on or measured.
    """

    wants_hidden = False

    def __init__(self, cache: TeacherCache) -> None:
        self._cache = cache

    def loss(self, student: Any, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the divergence; hidden states are not stored, so their error is zero."""
        at = positions.cpu()  # [positions]
        windows = [self._cache.read(row) for row in ids.cpu()]
        tokens, log_p, rest = (
            torch.cat([window[at] for window in column]).to(ids.device)
            for column in zip(*windows, strict=True)
        )  # [batch * positions, k] twice, [batch * positions]
        kl = top_divergence(student.logits.flatten(0, 1), tokens, log_p, rest)
        return kl, kl.new_zeros(())
