"""Converted checkpoints: the product's commands and transformers beside what the bytes say."""

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from conversion.checkpoint.inspection import inspect
from conversion.checkpoint.loading import load_converted
from tests.fuzz import safetensors_bytes
from tests.fuzz.read_source import IDS, refusal
from tests.fuzz.sandbox import Watch

# Keys of the contract, which have to be in the loaded model's config as they are in the file.
KEYS = (
    *("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("kv_b_proj_groups", "kv_lora_rank_per_layer", "qk_rope_head_dim_per_layer"),
    *("row_bits_per_layer", "attention_scale", "attention_bias", "num_hidden_layers"),
    *("num_attention_heads", "hidden_size", "rms_norm_eps", "vocab_size"),
)
IGNORED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


def check(case: Path, watch: Watch, rng: Random) -> str:
    """The verdict on a folder: refused in one line, or loaded as its bytes say."""
    folder = case / "model"
    inspected = None
    try:
        inspected = inspect(folder)
    except Exception as error:
        said = refusal(error)
        if said.startswith("wrong"):
            return f"{said} (inspect)"
    try:
        model, _ = load_converted(folder, torch.float32)
    except Exception as error:
        said = refusal(error)
        if said.startswith("wrong"):
            return f"{said} (load_converted)"
        return _by_transformers(folder) or said
    wrong = _contract(folder, model) or _tensors(folder, model)
    if wrong is None and inspected is not None and inspected.layers != len(model.model.layers):
        wrong = f"inspect says {inspected.layers} layers"
    if wrong is None and all(float(p.abs().max()) < 10 for p in model.parameters() if p.numel()):
        with torch.no_grad():
            logits = model(IDS % model.config.vocab_size).logits
        wrong = None if logits.isfinite().all() else "logits that are not finite"
    return f"wrong {wrong}" if wrong else "right every tensor as in the file"


def _by_transformers(folder: Path) -> str | None:
    """What transformers' own class loads of a folder that the commands refuse has to be right."""
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except Exception:
        return None
    if "mha2mla" not in model.config.model_type:
        return None
    wrong = _contract(folder, model) or _tensors(folder, model)
    return f"wrong AutoModelForCausalLM: {wrong}" if wrong else None


def _contract(folder: Path, model: Any) -> str | None:
    values = json.loads((folder / "config.json").read_text("utf-8"))
    for key in KEYS:
        if key in values and values[key] != getattr(model.config, key):
            return f"{key} is {values[key]}, not {getattr(model.config, key)}"
    return None


def _tensors(folder: Path, model: Any) -> str | None:
    stored: dict[str, torch.Tensor] = {}
    files = {"model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    for file in sorted(files):
        stored |= safetensors_bytes.tensors(folder / file)
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(IGNORED)}
    for name, parameter in model.state_dict().items():
        if name not in stored:
            if name == "lm_head.weight" and model.config.tie_word_embeddings:
                continue
            return f"{name} is made up"
        tensor = stored.pop(name)
        if tensor.shape != parameter.shape:
            return f"{name} has another shape"
        if not torch.allclose(parameter, tensor.to(parameter.dtype), 0, 0, equal_nan=True):
            return f"{name} has other values"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or infinity"
    return f"{next(iter(stored))} is not used" if stored else None
