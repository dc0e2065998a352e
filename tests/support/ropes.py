"""Scaled RoPEs, as a transformers config has them and as the metadata of a GGUF file has them.

A dict of its own for every caller: some configs write into the one that they are given.
"""

from typing import Any

GGUF_YARN = {
    "{arch}.rope.scaling.type": "yarn",
    "{arch}.rope.scaling.factor": 4.0,
    "{arch}.rope.scaling.original_context_length": 128,
}
"""The same as ``yarn()``, whose base is the one of a file that has none."""


def linear(**changes: Any) -> dict[str, Any]:
    return {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0} | changes


def yarn(**changes: Any) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    } | changes


def llama3(**changes: Any) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    } | changes
