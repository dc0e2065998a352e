"""Loading originals and converted checkpoints as transformers models."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from conversion.errors import first_line
from conversion.families import FAMILIES
from conversion.source import SourceCheckpoint, open_source
from vllm_mha2mla.errors import CheckpointError, MHA2MLAError


def read_converted_config(folder: Path) -> Any:
    """The config of a converted checkpoint.

    Raises:
        CheckpointError: no such folder, not converted, or of a format this release cannot read.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; give a converted checkpoint's folder")
    try:
        config = AutoConfig.from_pretrained(folder)
    except MHA2MLAError:
        raise
    except (ValueError, OSError, KeyError) as error:
        cause = error.__cause__ or error
        reason = first_line(cause)
        raise CheckpointError(f"{folder}: config.json cannot be read ({reason})") from error
    if not isinstance(config, tuple(family.config_class for family in FAMILIES.values())):
        raise CheckpointError(
            f"{folder}: a {config.model_type} model, not a converted one; "
            "convert it with: mha2mla convert"
        )
    return config


def load_converted(folder: Path, dtype: torch.dtype) -> tuple[Any, PreTrainedTokenizerBase]:
    """A converted checkpoint as a transformers model, with its tokenizer."""
    read_converted_config(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{folder}: weights cannot be loaded ({reason})") from error
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def load_source(source: str, dtype: torch.dtype) -> tuple[Any, PreTrainedTokenizerBase]:
    """An original, in any format the converter reads, as a transformers model."""
    checkpoint = open_source(source)
    return source_model(checkpoint, dtype), checkpoint.tokenizer()


def source_model(checkpoint: SourceCheckpoint, dtype: torch.dtype) -> Any:
    """The whole source as a transformers model."""
    with torch.device("meta"):
        model = checkpoint.family.causal_lm(checkpoint.config)
    head = checkpoint.family.head
    state = {
        name: checkpoint.of_model(name, tuple(tensor.shape), dtype)
        for name, tensor in model.state_dict().items()
        if name != head or head in checkpoint.tensors
    }
    model.load_state_dict(state, strict=False, assign=True)
    # Buffers were made on the meta device: computed again, never stored.
    checkpoint.family.set_rotary(model, checkpoint.family.rotary_embedding(checkpoint.config))
    embedding = model.get_submodule(checkpoint.family.names.embedding)
    if "embed_scale" in dict(embedding.named_buffers()):
        embedding.embed_scale = torch.tensor(checkpoint.family.embedding_factor(checkpoint.config))
    model.tie_weights()
    return model.eval()
