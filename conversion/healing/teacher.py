"""The teacher a student is held against: the original in memory, or its stored predictions."""

from typing import Any, Protocol

import torch
from torch import Tensor

from conversion.healing.losses import divergence, hidden_error, top_divergence
from conversion.healing.teacher_cache import TeacherCache


class Teacher(Protocol):
    """Says how far a student's output is from its own."""

    wants_hidden: bool
    """Whether the student's hidden states are compared too."""

    def loss(self, student: Any, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence of the predictions, and error of the hidden states.

        Args:
            student: the student's output, logits at ``positions``.
            ids: what it was given  # [batch, tokens]
            positions: which are compared  # [positions]
        """
        ...


class LiveTeacher:
    """A model in memory, asked at every step.

    Args:
        model: the original, whose weights do not learn.
        hidden: whether hidden states are compared.
    """

    def __init__(self, model: Any, hidden: bool = False) -> None:
        self.model = model.requires_grad_(False).eval()
        self.wants_hidden = hidden

    @torch.no_grad()
    def _ask(self, ids: Tensor, positions: Tensor) -> Any:
        return self.model(
            input_ids=ids,
            logits_to_keep=positions,
            use_cache=False,
            output_hidden_states=self.wants_hidden,
        )

    def loss(self, student: Any, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Teacher.loss`."""
        teacher = self._ask(ids, positions)
        apart = divergence(student.logits.flatten(0, 1), teacher.logits.flatten(0, 1))
        if not self.wants_hidden:
            return apart, apart.new_zeros(())
        return apart, hidden_error(student.hidden_states[1:], teacher.hidden_states[1:])


class StoredTeacher:
    """Predictions on disk: the likeliest tokens of every position, and the remaining mass.

    Args:
        cache: holds every window that will be asked for.
    """

    wants_hidden = False

    def __init__(self, cache: TeacherCache) -> None:
        self._cache = cache

    def loss(self, student: Any, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Teacher.loss`; hidden states are not stored."""
        at = positions.cpu()  # [positions]
        rows = [self._cache.read(row) for row in ids.cpu()]
        tokens, log_p, rest = (
            torch.cat([part[at] for part in parts]).to(ids.device)
            for parts in zip(*rows, strict=True)
        )  # [batch * positions, k] twice, [batch * positions]
        apart = top_divergence(student.logits.flatten(0, 1), tokens, log_p, rest)
        return apart, apart.new_zeros(())
