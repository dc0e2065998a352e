"""The same function as another family's model: does its conversion lose as much?

    python examples/benchmarks/other_clothes.py demo:smollm2-135m --text held-out.txt

Weights of a Llama are written in the layout of every family that can compute the same function:
with zero biases, fused projections, multipliers that undo each other, one expert. Each is converted
by the same recipe, and the perplexities are compared. Where a CPU or GPU multiplies bfloat16 fast,
calibration rounds its products, and families that add a bias or choose an expert round others:
--float32 computes them exactly, and what differs then is no rounding.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from conversion.checkpoint.loading import load_converted, source_model
from conversion.evaluation.perplexity import perplexity
from conversion.pipeline import Options, convert
from conversion.recipes.make import make_recipe
from conversion.runtime import precision
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint, open_source
from conversion.text.windows import evaluation_windows

State = dict[str, Tensor]
# Keys of a Llama's config that say the same in every family.
SHARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "hidden_act"),
    *("rms_norm_eps", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id"),
    "tie_word_embeddings",
)


def _as_it_is(state: State, config: Any) -> State:
    return state


def _with_zero_biases(state: State, config: Any) -> State:
    return state | {
        name.replace(".weight", ".bias"): torch.zeros(len(weight))
        for name, weight in state.items()
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    }


def _fused(state: State, config: Any) -> State:
    joined = {
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }
    state = dict(state)
    for layer in range(config.num_hidden_layers):
        for whole, parts in joined.items():
            prefix = f"model.layers.{layer}."
            rows = [state.pop(f"{prefix}{part}.weight") for part in parts]
            state[f"{prefix}{whole}.weight"] = torch.cat(rows)
    return state


def _granite(state: State, config: Any) -> State:
    """Every factor is undone by the weights."""
    return {
        name: weight / config.embedding_multiplier
        if "embed_tokens" in name
        else weight / config.residual_multiplier
        if name.endswith(("o_proj.weight", "down_proj.weight"))
        else weight
        for name, weight in state.items()
    }


def _gemma(state: State, config: Any) -> State:
    """Norms are offsets of 1; embeddings are multiplied, and the head that they are is not."""
    factor = config.hidden_size**0.5
    state = {
        name: weight * (factor if name == "model.norm.weight" else 1) - 1
        if "norm" in name
        else weight
        for name, weight in state.items()
    }
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"] / factor
    return state


def _one_expert(state: State, config: Any) -> State:
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    dressed = {}
    for name, weight in state.items():
        for ours, theirs in names.items():
            name = name.replace(f"mlp.{ours}", f"block_sparse_moe.experts.0.{theirs}")
        dressed[name] = weight
    for layer in range(config.num_hidden_layers):
        router = torch.zeros(1, config.hidden_size)
        dressed[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = router
    return dressed


CLOTHES: dict[str, tuple[Callable[[State, Any], State], dict[str, Any]]] = {
    "llama": (_as_it_is, {}),
    "mistral": (_as_it_is, {"sliding_window": None}),
    "qwen2": (_with_zero_biases, {}),
    "phi3": (_fused, {}),
    "granite": (
        _granite,
        {"embedding_multiplier": 4.0, "residual_multiplier": 0.5, "logits_scaling": 0.25},
    ),
    "smollm3": (_as_it_is, {"no_rope_layer_interval": 1 << 20}),
    "gemma": (_gemma, {}),
    "mixtral": (
        _one_expert,
        {"num_local_experts": 1, "num_experts_per_tok": 1, "sliding_window": None},
    ),
}
"""Family -> how a Llama's tensors become its, and keys of its config."""


def dress(state: State, config: Any, model_type: str, folder: Path) -> None:
    """Write a Llama with tied embeddings as a model folder of another family.

    Args:
        state: the Llama's tensors, float32.
        config: its config.
        model_type: of the family, one of ``CLOTHES``.
        folder: to create; has no tokenizer yet.
    """
    change, keys = CLOTHES[model_type]
    values = {key: getattr(config, key) for key in SHARED}
    if model_type == "granite":
        keys = keys | {"attention_multiplier": config.head_dim**-0.5}
    dressed = AutoConfig.for_model(model_type, **values | keys)
    folder.mkdir(parents=True)
    dressed.save_pretrained(folder)
    state = {name: weight.contiguous() for name, weight in change(state, dressed).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _loss(source: SourceCheckpoint, folder: Path, text: Path, options: Any) -> tuple[float, float]:
    windows = evaluation_windows(
        source.tokenizer(), text.read_text("utf-8"), options.window, options.windows
    )
    recipe = make_recipe(options.recipe, cache_fraction=options.cache_fraction, bits=options.bits)
    # Not rounded: which way a number is rounded would differ between families.
    convert(source, folder, recipe, Options(overwrite=True, dtype=torch.float32), Progress())
    original = perplexity(source_model(source, torch.float32), windows, Progress(), "Original")
    model, _ = load_converted(folder, torch.float32)
    converted = perplexity(model, windows, Progress(), "Converted")
    return original, converted


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a Llama with tied embeddings")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--families", nargs="*", default=list(CLOTHES), choices=list(CLOTHES))
    parser.add_argument("--recipe", type=Path, help="a preset or a YAML file")
    parser.add_argument("--cache-fraction", type=float)
    parser.add_argument("--bits")
    parser.add_argument("--float32", action="store_true", help="no products in bfloat16")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if options.float32:
        precision.bfloat16_is_fast = lambda device="cpu": False
    llama = open_source(options.source)
    state = {name: llama.tensor(name).float() for name in llama.tensors}
    print("family | original | converted | ratio")
    with tempfile.TemporaryDirectory() as work:
        for family in options.families:
            folder = Path(work) / family
            dress(state, llama.config, family, folder)
            llama.tokenizer().save_pretrained(folder)
            source = open_source(str(folder))
            # Qwen2's own class would split lines otherwise: other tokens to calibrate on.
            source.tokenizer = llama.tokenizer  # type: ignore[method-assign]
            before, after = _loss(source, Path(work) / "converted", options.text, options)
            print(f"{family} | {before:.4f} | {after:.4f} | {after / before:.5f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
