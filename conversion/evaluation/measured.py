"""The measurements of one model, on inputs that others are given too."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from conversion.evaluation.chat import ChatMeasured, ChatReference, measure_chat
from conversion.evaluation.inputs import Inputs
from conversion.evaluation.layer_error import attention_outputs
from conversion.evaluation.perplexity import perplexity
from conversion.evaluation.positions import position_losses
from conversion.evaluation.retrieval import answer_all
from conversion.evaluation.tasks import run_tasks
from conversion.runtime.progress import Progress


@dataclass(frozen=True)
class Measured:
    """The measurements of one model.

    Attributes:
        text: perplexity, and every layer's attention output on the first window
            # num_layers x [window, hidden]; ``None`` without a text.
        positions: mean loss at every position of every long text  # each [context - 1]
        retrieval: right or wrong, per file and question.
        chat: the model on the original's answers; ``None`` without a chat, and for the original.
        tasks: the harness's results; empty without tasks.
    """

    text: tuple[float, list[Tensor]] | None
    positions: list[Tensor]
    retrieval: list[list[bool]]
    chat: ChatMeasured | None
    tasks: dict[str, Any]


def measure_model(
    model: Any,
    inputs: Inputs,
    progress: Progress,
    label: str,
    reference: ChatReference | None = None,
) -> Measured:
    """Measure a model.

    Args:
        model: a transformers causal language model, original or converted.
        inputs: the inputs of the measurement.
        progress: shows every measurement as a task of its own.
        label: name of the model, for these tasks.
        reference: the original's answers in the chat; ``None``: no chat is measured.
    """
    text = None
    if inputs.text is not None:
        value = perplexity(model, inputs.text, progress, label)
        text = value, attention_outputs(model, inputs.text[0])
    return Measured(
        text=text,
        positions=[
            position_losses(model, windows, progress, f"{label}, {name}")
            for name, windows in inputs.long_texts
        ],
        retrieval=[
            answer_all(model, inputs.tokenizer, examples, progress, f"{label}, {examples.name}")
            for examples in inputs.retrieval
        ],
        chat=None
        if inputs.chat is None or reference is None
        else measure_chat(model, inputs.tokenizer, inputs.chat, reference, progress, label),
        # Last, because the harness may give the tokenizer a padding token.
        tasks=run_tasks(
            model, inputs.tokenizer, inputs.tasks, inputs.limit, progress, f"{label}, tasks"
        )
        if inputs.tasks
        else {},
    )
