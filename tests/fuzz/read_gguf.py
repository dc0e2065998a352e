"""GGUF files: the product's reading beside what the bytes say."""

import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from conversion.checkpoint.loading import source_model
from conversion.source import open_source
from tests.fuzz.gguf_bytes import parse
from tests.fuzz.read_source import IDS, refusal
from tests.fuzz.sandbox import Watch
from tests.support.gguf import PARTS

TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Metadata of a Llama -> key of its config.
SAID = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
}
# Whatever they are, a Llama computes the same, or the product has to refuse other values.
NEUTRAL = {
    "vocab_size": None,
    "tensor_data_layout": None,
    "attention.value_length": None,
    "rope.dimension_count": None,
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "expert_count": 0,
    "rope.scaling.finetuned": None,
}
ROPE = {
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scale_linear": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
}


def check(case: Path, watch: Watch, rng: Random) -> str:
    """The verdict on a GGUF file: refused in one line, or all of it as the bytes say."""
    path = min((case / "model").glob("*.gguf"), default=case / "model" / "m.gguf")
    try:
        source = open_source(str(path))
        tokenizer = source.tokenizer()
        ours = {name: torch.cat(list(source.pieces(name))) for name in source.tensors}
        (case / "out" / "assets").mkdir()
        source.write_assets(case / "out" / "assets")
        model = source_model(source, torch.float32)
    except Exception as error:
        return refusal(error)
    watch.on = False
    with torch.no_grad():
        logits = model(IDS).logits
    try:
        layouts = [parse(part) for part in sorted((case / "model").glob("*.gguf"))]
    except (ValueError, KeyError, struct.error) as error:
        return f"wrong accepted what is no GGUF file: {error!r}"
    values = layouts[0].values
    stored = {name: tensor for layout in layouts for name, tensor in layout.tensors.items()}
    wrong = _config(values, source.config, stored.pop("rope_freqs.weight", None))
    if wrong is None:
        wrong = _tensors(stored, ours, source.config)
    if wrong is None and len(tokenizer) != len(values["tokenizer.ggml.tokens"]):
        wrong = "tokens were lost"
    template = values.get("tokenizer.chat_template")
    if wrong is None and isinstance(tokenizer.chat_template, str | None):
        wrong = None if tokenizer.chat_template == template else "another chat template"
    if wrong is None and all(np.abs(t).max(initial=0) < 10 for t in stored.values()):
        wrong = None if logits.isfinite().all() else "logits that are not finite"
    return f"wrong {wrong}" if wrong else "right every value as in the file"


def _config(values: dict[str, Any], config: Any, freqs: np.ndarray | None) -> str | None:
    if values.get("general.architecture") != "llama":
        return f"architecture {values.get('general.architecture')}"
    rope = config.rope_parameters
    factor = values.get("llama.rope.scaling.factor") or values.get("llama.rope.scale_linear", 1.0)
    if freqs is not None and (freqs != 1).any() and rope["rope_type"] != "llama3":
        return "rope_freqs.weight is lost"
    for key, value in values.items():
        if not key.startswith("llama."):
            continue
        name = key.removeprefix("llama.")
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if name in SAID:
            found = getattr(config, SAID[name])
        elif name in ROPE:
            found = rope.get(ROPE[name], _unscaled(name, values))
            if (name, found) == ("rope.scaling.type", "default"):
                # A linear scaling by 1 is none; llama.cpp takes a factor of 0 for 1.
                neutral = value == "linear" and factor in (0.0, 1.0)
                found = value if neutral else "none"
            if name in ("rope.scaling.factor", "rope.scale_linear") and value == 0.0:
                found = 0.0 if found == 1.0 else found
        elif name == "attention.sliding_window":
            longest = values["llama.context_length"]
            found = value if value == 0 or value >= longest else "refused"
        elif name in NEUTRAL:
            found = value if NEUTRAL[name] is None else NEUTRAL[name]
        else:
            return f"{key} = {value} was overlooked"
        # Numbers of a file are float32.
        if found != value and not (
            isinstance(value, float) and np.isclose(found, value, rtol=1e-6, atol=0)
        ):
            return f"{key} is {value}, not {found}"
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    for kind in ("eos", "eot", "eom"):
        end = values.get(f"tokenizer.ggml.{kind}_token_id")
        if end is not None and end not in ends:
            return f"end token {end} is lost"
    return None


def _unscaled(name: str, values: dict[str, Any]) -> Any:
    """What an absent parameter of RoPE means."""
    scaled = values.get("llama.rope.scaling.type") == "yarn"
    neutral = {
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "rope.scale_linear": 1.0,
        "rope.scaling.attn_factor": 1.0,
    }
    if name == "rope.scaling.original_context_length" and not scaled:
        return values.get(f"llama.{name}")
    return neutral.get(name)


def _tensors(
    stored: dict[str, np.ndarray], ours: dict[str, torch.Tensor], config: Any
) -> str | None:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    own_layer = {there: own for own, there in PARTS.items()}
    seen = set()
    for name, tensor in stored.items():
        module, _, kind = name.rpartition(".")
        parts = module.split(".")
        own = TENSORS.get(module)
        if own is None:
            own = f"model.layers.{int(parts[1])}.{own_layer[parts[2]]}"
        if parts[-1] in heads:
            count, rest = heads[parts[-1]], tensor.shape[1:]
            paired = tensor.reshape(count, -1, 2, *rest)
            tensor = np.moveaxis(paired, 2, 1).reshape(tensor.shape)
        seen.add(f"{own}.{kind}")
        if not np.array_equal(ours[f"{own}.{kind}"].numpy(), tensor, equal_nan=True):
            return f"{name} has other values"
    # A file that has some biases has zeros for the others.
    return next(
        (
            f"{name} is not in the file"
            for name in set(ours) - seen
            if not name.endswith(".bias") or ours[name].any()
        ),
        None,
    )
