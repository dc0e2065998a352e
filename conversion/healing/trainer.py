"""transformers' Trainer with the losses of healing."""

from typing import Any

import torch
from accelerate.utils import AutocastKwargs, convert_to_fp32
from torch import Tensor
from transformers.trainer_callback import PrinterCallback

from conversion.healing.losses import next_token
from conversion.healing.private_apis import CompleteCheckpoints
from conversion.healing.teacher import Teacher

# Every weight is used once per pass: a cache of rounded copies would only take memory.
NO_WEIGHT_CACHE = AutocastKwargs(cache_enabled=False)


class HealingTrainer(CompleteCheckpoints):
    """Trains a student on token windows towards a teacher, the text, or both.

        (1 - lm_weight) divergence + lm_weight next-token loss + hidden_weight hidden-state error

    Args:
        teacher: the model to follow; ``None``: train on the text only.
        lm_weight: share of the next-token loss, 0 to 1.
        hidden_weight: weight of the hidden states' error.
        stride: compare every ``stride``-th position.
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
        # It prints what our own progress shows.
        self.remove_callback(PrinterCallback)
        self._teacher = teacher
        self._lm_weight = lm_weight
        self._hidden_weight = hidden_weight
        self._stride = stride

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Compute the loss of one batch of windows, ``input_ids``  # [batch, tokens]"""
        ids = inputs["input_ids"]
        # The offset rotates from step to step, so that every position has its turn. The last
        # position is left out: its next token is not in the window.
        offset = self.state.global_step % self._stride
        last = ids.shape[1] - 1
        positions = torch.arange(offset, last, self._stride, device=ids.device)  # [positions]
        kl, hidden, text = self._losses(model, ids, positions)
        loss = torch.zeros((), device=ids.device)
        if self._lm_weight < 1:
            loss = loss + (1 - self._lm_weight) * kl
        if self._lm_weight > 0:
            loss = loss + self._lm_weight * text
        if self._hidden_weight > 0:
            loss = loss + self._hidden_weight * hidden
        return loss

    def _losses(
        self, model: Any, ids: Tensor, positions: Tensor, need_text: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Divergence, hidden states' error and next-token loss; zero where not needed."""
        teacher = self._teacher
        zero = torch.zeros((), device=ids.device)
        # Trainer's own autocast covers only the student's forward pass.
        with self.accelerator.autocast(NO_WEIGHT_CACHE):
            student = model(
                input_ids=ids,
                logits_to_keep=positions,
                use_cache=False,
                output_hidden_states=teacher is not None and teacher.wants_hidden,
            )
            # accelerate does this for models that are not sharded. Without it the gradients of
            # several losses would add up in bfloat16.
            student = convert_to_fp32(student)
            kl, hidden = (zero, zero) if teacher is None else teacher.loss(student, ids, positions)
        text = zero
        if need_text or self._lm_weight > 0:
            text = next_token(student.logits.flatten(0, 1), ids[:, positions + 1].flatten())
        return kl, hidden, text

    @torch.no_grad()
    def measure(self, windows: Tensor) -> dict[str, float]:
        """Measure the student as it is, at every position of whole windows.

        Args:
            windows: token ids  # [windows, window]

        Returns:
            ``perplexity``, and ``divergence`` in nats if there is a teacher; empty without windows.
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
            kl, _, text = self._losses(model, ids, positions, need_text=True)
            sums += torch.stack((kl, text)).double().cpu()
        model.train(training)
        mean_kl, mean_loss = (sums / len(windows)).tolist()
        # Not math.exp, which raises where this is infinite.
        figures = {"perplexity": float(torch.tensor(mean_loss).exp())}
        return figures if self._teacher is None else figures | {"divergence": mean_kl}
