"""transformers' Trainer with the losses of healing."""

from typing import Any

import torch
from accelerate.utils import AutocastKwargs, convert_to_fp32
from torch import Tensor
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from conversion.healing.losses import next_token
from conversion.healing.teacher import Teacher

# Every weight is used once: rounded copies of all layers would only stay.
ONE_USE = AutocastKwargs(cache_enabled=False)


class HealingTrainer(Trainer):
    """Trains a student on token windows towards a teacher, the text, or both.

    Args:
        teacher: what the student is held against; ``None``: only the text.
        lm_weight: share of the next-token loss: 0 to 1.
        hidden_weight: of the hidden states' error, beside the divergence.
        stride: every how manieth position is compared.
        kwargs: Trainer's.
    """

    def __init__(
        self,
        *,
        teacher: Teacher | None,
        lm_weight: float = 0.0,
        hidden_weight: float = 0.0,
        stride: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # It prints what the caller's own progress says.
        self.remove_callback(PrinterCallback)
        self._teacher = teacher
        self._lm_weight = lm_weight
        self._hidden_weight = hidden_weight
        self._stride = stride

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss of one batch of windows, ``input_ids``  # [batch, tokens]"""
        ids = inputs["input_ids"]
        # The last position predicts what is not there.
        offset = self.state.global_step % self._stride
        last = ids.shape[1] - 1
        positions = torch.arange(offset, last, self._stride, device=ids.device)  # [positions]
        apart, hidden, text = self._losses(model, ids, positions)
        loss = torch.zeros((), device=ids.device)
        if self._lm_weight < 1:
            loss = loss + (1 - self._lm_weight) * apart
        if self._lm_weight > 0:
            loss = loss + self._lm_weight * text
        if self._hidden_weight > 0:
            loss = loss + self._hidden_weight * hidden
        return loss

    def _losses(
        self, model: Any, ids: Tensor, positions: Tensor, everything: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Divergence, hidden states' error and next-token loss; zero where not asked for."""
        teacher = self._teacher
        zero = torch.zeros((), device=ids.device)
        # Trainer has only the student's forward pass in mixed precision.
        with self.accelerator.autocast(ONE_USE):
            student = model(
                input_ids=ids,
                logits_to_keep=positions,
                use_cache=False,
                output_hidden_states=teacher is not None and teacher.wants_hidden,
            )
            # As accelerate does for a model that is not sharded: several losses would else add up
            # their gradients in bfloat16.
            student = convert_to_fp32(student)
            apart, hidden = (
                (zero, zero) if teacher is None else teacher.loss(student, ids, positions)
            )
        text = zero
        if everything or self._lm_weight > 0:
            text = next_token(student.logits.flatten(0, 1), ids[:, positions + 1].flatten())
        return apart, hidden, text

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The last that other processes write of a state, before the first one declares it whole.
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def measure(self, windows: Tensor) -> dict[str, float]:
        """Figures of the student as it is, over whole windows.

        Args:
            windows: token ids  # [windows, window]

        Returns:
            ``perplexity``, and ``divergence`` if there is a teacher; nothing without windows.
        """
        if not len(windows):
            return {}
        model = self.model_wrapped
        training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)  # divergence, next-token loss
        for row in windows:
            ids = row[None].to(self.args.device)  # [1, window]
            positions = torch.arange(ids.shape[1] - 1, device=ids.device)  # [window - 1]
            apart, _, text = self._losses(model, ids, positions, everything=True)
            sums += torch.stack((apart, text)).double().cpu()
        model.train(training)
        apart, text = (sums / len(windows)).tolist()
        # Not math.exp, which raises where this is infinite.
        figures = {"perplexity": float(torch.tensor(text).exp())}
        return figures if self._teacher is None else figures | {"divergence": apart}
