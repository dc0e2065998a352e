"""A short distillation of the attention weights, with the original as teacher and no labels."""

import copy
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from conversion.calibration.text import calibration_windows
from conversion.dense_attention import NAME as DENSE_ATTENTION
from conversion.loading import source_model
from conversion.memory import keep_freed_memory
from conversion.mixed_precision import bfloat16_is_fast, bfloat16_products
from conversion.progress import Progress
from conversion.recipe import Recipe
from conversion.source import SourceCheckpoint
from vllm_mha2mla.config import ROPE_INV_FREQ

# Every second position is compared: half the work of the language-model head, which is a
# quarter of a small model's, at nearly the same signal.
STRIDE = 2
WARMUP_STEPS = 10
BETAS = (0.9, 0.98)


def refinement_windows(
    tokenizer: PreTrainedTokenizerBase, files: Sequence[Path], recipe: Recipe
) -> Tensor:
    """The text to refine on: as many windows as there are steps, if the texts have that many.

    Returns:
        token ids  # [windows, tokens]
    """
    tokens = recipe.refine_steps * recipe.refine_window
    return calibration_windows(tokenizer, files, tokens, recipe.refine_window).ids


def refine(
    source: SourceCheckpoint,
    config: Any,
    layers: list[dict[str, Tensor]],
    ids: Tensor,
    recipe: Recipe,
    progress: Progress,
) -> list[dict[str, Tensor]]:
    """Train the converted attention of all layers at once towards the original's predictions.

        min  mean_t KL(p_original(. | x_<=t) || p_converted(. | x_<=t))

    over the attention's weights only, with Adam, a linear decay and ``recipe.refine_lr``:
    embeddings, norms and MLPs are shared with the teacher and stay as they are, and so do the
    rotary frequencies. The matrix products run in bfloat16 where the processor has it, weights,
    residual stream and losses in float32.

    Args:
        source: the original; it is loaded whole, once for teacher and student.
        config: the converted model's config.
        layers: the ``self_attn`` tensors of every converted layer.
        ids: token windows, cycled through if there are fewer than steps  # [windows, tokens]
        recipe: ``refine_steps``, one window each, and ``refine_lr``.
        progress: told about every step.

    Returns:
        the refined tensors of every layer, float32.
    """
    keep_freed_memory()
    teacher = source_model(source, torch.float32)
    teacher.config._attn_implementation = DENSE_ATTENTION
    _shrink(teacher)
    student = _student(source, config, teacher, layers)
    trainable = _trainable(student)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress.task("Refining", recipe.refine_steps) as advance,
        _quiet(),
    ):
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=recipe.refine_steps,
            per_device_train_batch_size=1,
            learning_rate=recipe.refine_lr,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            lr_scheduler_type="linear",
            warmup_steps=min(WARMUP_STEPS, recipe.refine_steps // 4),
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            seed=0,
        )
        trainer = _Distillation(
            model=student,
            args=arguments,
            train_dataset=[{"input_ids": row} for row in ids],
            callbacks=[_Advance(advance)],
            teacher=teacher,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [
        {name: trainable[index].get(name, tensor).detach() for name, tensor in tensors.items()}
        for index, tensors in enumerate(layers)
    ]


class _Distillation(Trainer):
    """Trainer whose loss is the divergence from a teacher's predictions."""

    def __init__(self, *args: Any, teacher: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._teacher = teacher

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        ids = inputs["input_ids"]
        offset = self.state.global_step % STRIDE
        with bfloat16_products():
            with torch.no_grad():
                target = self._log_probabilities(self._teacher, ids, offset)
            predicted = self._log_probabilities(model, ids, offset)
        loss: Tensor = nn.functional.kl_div(
            predicted, target, reduction="batchmean", log_target=True
        )
        return loss

    @staticmethod
    def _log_probabilities(model: Any, ids: Tensor, offset: int) -> Tensor:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, offset::STRIDE]).flatten(0, 1)  # [positions, vocabulary]
        logged: Tensor = logits.float().log_softmax(-1)
        return logged


class _Advance(TrainerCallback):
    def __init__(self, advance: Any) -> None:
        self._advance = advance

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance()


def _student(
    source: SourceCheckpoint, config: Any, teacher: Any, layers: list[dict[str, Tensor]]
) -> Any:
    """The converted model on the teacher's own tensors, with copies of the converted ones."""
    config = copy.deepcopy(config)
    config._attn_implementation = DENSE_ATTENTION
    with torch.device("meta"):
        student = source.family.converted_causal_lm(config)
    state = {
        name: tensor for name, tensor in teacher.state_dict().items() if ".self_attn." not in name
    }
    for index, tensors in enumerate(layers):
        prefix = f"model.layers.{index}.self_attn."
        state |= {prefix + name: tensor.float().clone() for name, tensor in tensors.items()}
    student.load_state_dict(state, strict=False, assign=True)
    student.model.rotary_emb = teacher.model.rotary_emb
    student.tie_weights()
    return student


def _shrink(teacher: Any) -> None:
    """Weights that are not trained, shared by teacher and student, in the products' dtype."""
    if bfloat16_is_fast():
        for layer in teacher.model.layers:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.weight.data = module.weight.data.bfloat16()


def _trainable(student: Any) -> list[dict[str, Tensor]]:
    """Only the converted attention learns, and of it not the rotary frequencies."""
    student.requires_grad_(False)
    found = []
    for layer in student.model.layers:
        parameters = {
            name: parameter
            for name, parameter in layer.self_attn.named_parameters()
            if name != ROPE_INV_FREQ
        }
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        found.append(parameters)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Trainer prints its summary; the caller has its own progress."""
    logger = logging.getLogger("transformers.trainer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
