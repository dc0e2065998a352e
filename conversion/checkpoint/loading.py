"""Loading originals and converted checkpoints as transformers models."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from conversion.errors import first_line
from conversion.families import FAMILIES, family_of
from conversion.source import SourceCheckpoint, open_source
from conversion.source.checkpoint import CONFIG_ERRORS, check_keys
from conversion.source.folder import FolderCheckpoint
from conversion.source.plain_files import check_plain_files
from vllm_mha2mla.coding.row_code import row_codes
from vllm_mha2mla.config import latent_widths
from vllm_mha2mla.errors import CheckpointError, MHA2MLAError


def read_converted_config(folder: Path) -> Any:
    """The config of a converted checkpoint.

    Raises:
        CheckpointError: no such folder, not converted, or of a format this release cannot read.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; give a converted checkpoint's folder")
    check_plain_files(folder, str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_keys(config)
    except MHA2MLAError:
        raise
    except CONFIG_ERRORS as error:
        reason = first_line(error.__cause__ or error)
        raise CheckpointError(f"{folder}: config.json cannot be read ({reason})") from error
    if not isinstance(config, tuple(family.config_class for family in FAMILIES.values())):
        raise CheckpointError(
            f"{folder}: a {config.model_type} model, not a converted one; "
            "convert it with: mha2mla convert"
        )
    _check_values(config, folder)
    return config


def _check_values(config: Any, folder: Path) -> None:
    """Refuse what no conversion writes, and what was put in afterwards.

    Raises:
        CheckpointError: with the reason.
    """
    try:
        reason = family_of(config).refusal(config)
        latent_widths(config)
        row_codes(config)
    except MHA2MLAError:
        raise
    except CONFIG_ERRORS as error:
        reason = first_line(error)
    if reason is not None:
        raise CheckpointError(f"{folder}: config.json: {reason}; convert the model again")


def load_converted(folder: Path, dtype: torch.dtype) -> tuple[Any, PreTrainedTokenizerBase]:
    """A converted checkpoint as a transformers model, with its tokenizer.

    Raises:
        CheckpointError: not a converted checkpoint, damaged or incomplete.
    """
    read_converted_config(folder)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except MHA2MLAError:
        raise
    except Exception as error:  # Every package raises its own for damaged files.
        reason = first_line(error)
        raise CheckpointError(f"{folder}: weights cannot be loaded ({reason})") from error
    stored = FolderCheckpoint(folder).tensors
    family, tensors = family_of(model.config), model.state_dict()
    parts = (family.stored_parts(name, tuple(t.shape)) for name, t in tensors.items())
    unknown = set(stored) - {part for of_one in parts for part, _, _ in of_one}
    for problem, names in (("missing", info["missing_keys"]), ("unknown", unknown)):
        if names:
            raise CheckpointError(
                f"{folder}: tensor {min(names)} is {problem}; convert the model again"
            )
    for name, tensor in tensors.items():
        if not all(extreme.isfinite() for extreme in (tensor.aminmax() if tensor.numel() else ())):
            raise CheckpointError(
                f"{folder}: {name} holds NaN or infinite values; convert the model again"
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # The package tokenizers raises nothing more special.
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be loaded ({first_line(error)}); convert the model "
            "again"
        ) from error
    return model.eval(), tokenizer


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
