"""GGUF files of tiny Llamas, written as llama.cpp's converter writes them."""

import re
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaForCausalLM

from tests.support.tiny import tiny_tokenizer

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Beyond the bytes: the product of the one merge, and tokens that end something.
MORE_TOKENS = ("Ġt", "<|im_end|>", "<|eot|>", "<|eom|>", "<|bos|>")
VOCABULARY = 256 + len(MORE_TOKENS)


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The model's tensors under llama.cpp's names, rotary pairs side by side."""
    config, tensors = model.config, {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for which, heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if which in name:
                halves = tensor.view(heads, 2, config.head_dim // 2, *tensor.shape[1:])
                tensor = halves.transpose(1, 2).reshape(tensor.shape)
        tensors[_name(name)] = tensor.contiguous().float().numpy()
    return tensors


def family_tensors(
    stored: dict[str, torch.Tensor], config, architecture: str, permuted: bool, offset: float
) -> dict[str, np.ndarray]:
    """The tensors of any family's folder under the names that the package gguf gives them.

    Args:
        stored: of the folder's safetensors.
        config: its config.
        architecture: of the file.
        permuted: rotary pairs are put side by side, as llama.cpp does for some families.
        offset: that is added to the weights of norms.
    """
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors, experts = {}, {}
    for name, tensor in stored.items():
        tensor = tensor.float()
        for which, heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if permuted and which in name:
                d = len(tensor) // heads
                halves = tensor.view(heads, 2, d // 2, *tensor.shape[1:])
                tensor = halves.transpose(1, 2).reshape(tensor.shape)
        if name.endswith("norm.weight"):
            tensor = tensor + offset
        own, of_expert = re.subn(r"\.experts\.\d+\.", ".experts.", name)
        there = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if of_expert:
            number = int(re.search(r"\.experts\.(\d+)\.", name).group(1))
            experts.setdefault(there, {})[number] = tensor
        else:
            tensors[there] = tensor
    for there, parts in experts.items():
        tensors[there] = torch.stack([parts[number] for number in sorted(parts)])
    return {there: tensor.contiguous().numpy() for there, tensor in tensors.items()}


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    config,
    metadata: dict | None = None,
    architecture: str = "llama",
    split: int = 1,
    vocabulary: tuple[list[str], list[int], list[str] | None] | None = None,
) -> Path:
    """Write a file, or ``split`` parts of it; returns the (first) one.

    Args:
        path: the file; parts are named after it.
        tensors: under llama.cpp's names.
        config: a transformers config, for the shape.
        metadata: more keys, or ``None`` for a key that is to be left out; ``{arch}`` is replaced.
        architecture: ``general.architecture``.
        split: number of parts.
        vocabulary: tokens, their types and merges; ``None`` for bytes and ``MORE_TOKENS``.
    """
    tokens, types, merges = vocabulary or byte_vocabulary()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)
    keys = {
        "{arch}.block_count": config.num_hidden_layers,
        "{arch}.context_length": config.max_position_embeddings,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": config.intermediate_size,
        "{arch}.attention.head_count": config.num_attention_heads,
        "{arch}.attention.head_count_kv": config.num_key_value_heads,
        "{arch}.attention.layer_norm_rms_epsilon": float(getattr(config, "rms_norm_eps", 1e-5)),
        "{arch}.attention.key_length": head_dim,
        "{arch}.attention.value_length": head_dim,
        "{arch}.rope.dimension_count": int(turned),
        "{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "{arch}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
    } | (metadata or {})
    names = list(tensors)
    paths = [path]
    if split > 1:
        paths = [
            path.with_name(f"{path.stem}-{n:05d}-of-{split:05d}.gguf") for n in range(1, split + 1)
        ]
    for at, part in enumerate(paths):
        out = gguf.GGUFWriter(str(part), architecture)
        if split > 1:
            out.add_uint16("split.no", at)
            out.add_uint16("split.count", split)
            out.add_int32("split.tensors.count", len(names))
        if at == 0:
            for key, value in keys.items():
                _add(out, key.replace("{arch}", architecture), value)
            out.add_token_list(tokens)
            out.add_token_types(types)
            if merges:
                out.add_token_merges(merges)
        for name in names[at::split]:
            out.add_tensor(name, tensors[name])
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
    return paths[0]


def byte_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Bytes and ``MORE_TOKENS``, the type of each, and the one merge."""
    by_id = {index: token for token, index in tiny_tokenizer().get_vocab().items()}
    tokens = [*(by_id[index] for index in range(256)), *MORE_TOKENS]
    return tokens, [1] * 257 + [3] * (len(MORE_TOKENS) - 1), ["Ġ t"]


def llama3_freqs(config) -> np.ndarray:
    """llama.cpp's factors for Llama 3's scaling, by its converter's formula  # [d / 2]"""
    rope, d = config.rope_parameters, config.head_dim
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for i in range(0, d, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / d)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            context, low_factor = rope["original_max_position_embeddings"], rope["low_freq_factor"]
            smooth = (context / wavelength - low_factor) / (rope["high_freq_factor"] - low_factor)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def _name(name: str) -> str:
    if name.startswith("model.embed_tokens"):
        return name.replace("model.embed_tokens", "token_embd")
    if name.startswith("model.norm"):
        return name.replace("model.norm", "output_norm")
    if name.startswith("lm_head"):
        return name.replace("lm_head", "output")
    layer, part = name.removeprefix("model.layers.").split(".", 1)
    module, _, kind = part.rpartition(".")
    return f"blk.{layer}.{PARTS[module]}.{kind}"


def _add(out: gguf.GGUFWriter, key: str, value) -> None:
    if value is None:
        return
    kinds = {bool: out.add_bool, int: out.add_uint32, float: out.add_float32}
    kinds |= {str: out.add_string, list: out.add_array}
    kinds[type(value)](key, value)
