"""Folders with two sets of weights, of which transformers reads one and vLLM the other.

transformers leaves ``model.safetensors`` where it is when it saves a model in parts.
"""

import json
from pathlib import Path

from vllm_mha2mla.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def refuse_two_sets(folder: Path) -> None:
    """Refuse a converted checkpoint with a single weight file beside an index of others.

    Args:
        folder: of the checkpoint; one that does not exist passes, as does one that is damaged
            otherwise.

    Raises:
        CheckpointError: it holds both.
    """
    if not (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return
    try:
        files = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return
    if SINGLE not in files:
        raise CheckpointError(
            f"{folder}: holds two models: {SINGLE}, which transformers reads, and the files of "
            f"{INDEX}, which vLLM reads; move one of them away"
        )
