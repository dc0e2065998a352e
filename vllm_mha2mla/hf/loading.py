"""Loading and saving in transformers, where a checkpoint's constants are checked.

transformers casts what it loads to the dtype that a model asks for, so that a rounded tensor would
look exact afterwards.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from vllm_mha2mla.config import CONSTANTS, refuse_no_numbers, refuse_rounded
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.hf.adapters import other_rows
from vllm_mha2mla.two_sets import SINGLE, refuse_two_sets


class LoadsExactly(PreTrainedModel):
    """A model that loads and saves its constants in float32, or not at all."""

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: Mapping[str, Any] | None,
        checkpoint_files: Sequence[str] | None,
        load_config: Any,
        expected_keys: list[str] | None = None,
    ) -> tuple[Any, Any]:
        for file in checkpoint_files or ():
            if Path(file).name == SINGLE:
                refuse_two_sets(Path(file).parent)
        stored = dict(_stored(state_dict, checkpoint_files))
        refuse_rounded(stored.items())
        if getattr(model.config, "quantization_config", None) is None:
            refuse_no_numbers(stored.items())
        info, offloaded = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, expected_keys
        )
        if expected_keys is not None:
            # An adapter's own weights.
            for name, _, _ in info.mismatched_keys:
                raise other_rows(name)
        elif stored:  # Not so in a process that is sent its weights.
            lost = sorted(x for x in info.missing_and_mismatched() if x.endswith(CONSTANTS))
            if lost:
                raise CheckpointError(
                    f"{lost[0]} is not in the checkpoint, or has another length; convert the model "
                    "again"
                )
        return info, offloaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, unless the given tensors hold rounded constants.

        Raises:
            CheckpointError: they do.
        """
        signature = inspect.signature(PreTrainedModel.save_pretrained)
        given = signature.bind(self, save_directory, *args, **kwargs).arguments
        refuse_rounded((name, _dtype(x)) for name, x in (given.get("state_dict") or {}).items())
        super().save_pretrained(save_directory, *args, **kwargs)


def _stored(
    state_dict: Mapping[str, Any] | None, files: Sequence[str] | None
) -> Iterable[tuple[str, str]]:
    """Name and dtype of every tensor that is to be loaded."""
    if state_dict is None:
        return stored_dtypes(files or ())
    return ((name, _dtype(tensor)) for name, tensor in state_dict.items())


def stored_dtypes(files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and dtype of every tensor in weight files, as their format writes it."""
    for file in files:
        if not Path(file).is_file():
            # Opening a pipe would wait for its other end.
            raise CheckpointError(f"{file}: not a file; convert the model again")
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    yield name, opened.get_slice(name).get_dtype()
        else:
            meta = load_state_dict(file, map_location="meta")
            yield from ((name, _dtype(tensor)) for name, tensor in meta.items())


def _dtype(tensor: Any) -> str:
    """The dtype of a tensor, or of a part of a file."""
    written: str = tensor.get_dtype() if hasattr(tensor, "get_dtype") else str(tensor.dtype)
    return written
