"""Folders that hold something else than a model to convert, and what to do with each."""

import json
import shlex
from pathlib import Path
from typing import Any

from conversion.errors import SourceError
from conversion.families import FAMILIES
from conversion.families.refused import reason_of
from conversion.source.quantised import quantisation, refusal

ADAPTER = "adapter_config.json"
TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def check_has_config(folder: Path, name: str) -> None:
    """Refuse a folder without a model's config.

    Raises:
        SourceError: an adapter, a folder of GGUF files, or no model at all.
    """
    whole = (folder / "config.json").is_file()
    if (folder / ADAPTER).is_file():
        merging = (
            "from peft import AutoPeftModelForCausalLM as M; "
            f"M.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('merged')"
        )
        what = "a model with an adapter beside it" if whole else "an adapter"
        rest = ", which transformers would load too" if whole else ", not a whole model"
        or_move = f"move {ADAPTER} away, or " if whole else ""
        raise SourceError(
            f"{name}: {what}{_base(folder / ADAPTER)}{rest}; {or_move}merge it first: "
            f"python -c {shlex.quote(merging)}"
        )
    if whole:
        return
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        raise SourceError(f"{name}: no config.json; give the GGUF file itself: {gguf[0]}")
    raise SourceError(f"{name}: no config.json; give a Hugging Face model folder")


def check_convertible(config: Any, name: str) -> None:
    """Refuse a model whose config says that it is quantised, converted or of an unknown family.

    Raises:
        SourceError: with the way out.
    """
    if config.model_type in {family.config_class.model_type for family in FAMILIES.values()}:
        source = (config.mha2mla or {}).get("source", {}).get("name", "the original")
        raise SourceError(
            f"{name}: converted already; convert {source} again, or go on with this: mha2mla heal "
            "trains it, vllm serve serves it"
        )
    settings = quantisation(config)
    refused = refusal(settings) if settings is not None else None
    if refused is not None:
        raise SourceError(f"{name}: {refused}")
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        reason = reason_of(config)
        raise SourceError(
            f"{name}: model family {config.model_type!r} is not supported"
            f"{f': {reason}' if reason else ''}; convert a decoder of one of: {known}"
        )
    reason = family.refusal(config)
    if reason:
        raise SourceError(f"{name}: {reason}; this model cannot be converted")


def no_safetensors(folder: Path, name: str, wanted: str) -> SourceError:
    """The error for a folder without safetensors, which names the way to make them."""
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        return SourceError(f"{name}: no safetensors; give the GGUF file itself: {gguf[0]}")
    if not any((folder / weights).is_file() for weights in TORCH_WEIGHTS):
        return SourceError(f"{name}: neither {wanted} found; only safetensors weights are read")
    made = f"{folder.name}-safetensors"
    there = str(folder)
    saving = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"M.from_pretrained({there!r}).save_pretrained({made!r}); "
        f"T.from_pretrained({there!r}).save_pretrained({made!r})"
    )
    return SourceError(
        f"{name}: only PyTorch .bin weights, which are not read; make safetensors of them, then "
        f"convert {made}: python -c {shlex.quote(saving)}"
    )


def _base(file: Path) -> str:
    try:
        base = json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError, OSError):
        return ""
    return f" of {base}" if base else ""
