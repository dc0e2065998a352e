"""Quantised checkpoints: which are read, and their matrices."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from conversion.errors import SourceError
from conversion.source import compressed_tensors, fp8
from conversion.source.scaled import Read, ScaledWeight
from conversion.source.tensor_info import TensorInfo

logger = logging.getLogger(__name__)

COMPRESSED_TENSORS = "compressed-tensors"
FP8 = {"fp8", "fbgemm_fp8"}
# Beside the weights: scales of activations and of the cache, which a converted model does not use.
UNUSED = (
    *(".input_scale", ".input_zero_point", ".input_global_scale", ".activation_scale"),
    *(".output_scale", ".output_zero_point", ".k_scale", ".v_scale", ".q_scale", ".kv_scale"),
    *(".weight_shape", ".input_scale_ub"),
)


def quantisation(config: Any) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a model; ``None``: it is not quantised."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config, "compression_config", None)
    if found is None or isinstance(found, Mapping):
        return found
    # Of whatever else, nothing is known.
    return found.to_dict() if hasattr(found, "to_dict") else {}


def refusal(settings: Mapping[str, Any]) -> str | None:
    """Say as what a quantised model is refused, and the way out; ``None`` if it is read."""
    method = str(settings.get("quant_method") or "already")
    if method in FP8:
        return None
    reason = None
    if method == COMPRESSED_TENSORS:
        reason = compressed_tensors.unreadable(settings)
        if reason is None:
            return None
    detail = f" ({reason})" if reason else ""
    return f"{method.upper()}-quantised{detail}; convert from the unquantised model"


def quantised_weights(
    settings: Mapping[str, Any], stored: Mapping[str, TensorInfo], read: Read, name: str
) -> tuple[dict[str, ScaledWeight], set[str]]:
    """The quantised matrices of a checkpoint, and the stored tensors that are used up.

    Args:
        settings: of a model that :func:`refusal` lets pass.
        stored: every tensor of the files.
        read: reads one of them.
        name: how the user named the checkpoint.

    Raises:
        SourceError: the parts of a matrix do not fit each other.
    """
    method = settings.get("quant_method")
    try:
        if method == COMPRESSED_TENSORS:
            found = compressed_tensors.weights(settings, stored, read)
        else:
            found = fp8.weights(settings, stored)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(
            f"{name}: {method}-quantised, and {error}; convert from the unquantised model"
        ) from error
    used = {part for weight in found.values() for part in weight.parts}
    return found, used | {key for key in stored if key.endswith(UNUSED)}


def dequantised_dtype(config: Any) -> torch.dtype:
    """The dtype of weights once they are dequantised: the model's if that has 16 bits."""
    dtype = getattr(config, "dtype", None)
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
