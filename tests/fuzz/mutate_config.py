"""Hostile values in the JSON files of a checkpoint."""

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.hostile import nested, value, with_duplicate

# Keys that a config may have beside its own, with values to try first.
KEYS: dict[str, tuple[Any, ...]] = {
    "rope_scaling": ({"type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}),
    "rope_theta": (1e4, 5e5),
    "partial_rotary_factor": (0.5, 1.0),
    "sliding_window": (16, 4096),
    "use_sliding_window": (True,),
    "layer_types": (["sliding_attention"] * 2, ["full_attention"], ["linear_attention"] * 2),
    "quantization_config": ({"quant_method": "fp8"}, {"quant_method": "compressed-tensors"}),
    "compression_config": ({"quant_method": "compressed-tensors", "config_groups": {}},),
    "transformers_weights": ("model.safetensors", "../outside/secret.txt", "pytorch_model.bin"),
    "tie_word_embeddings": (True, False),
    "auto_map": ({"AutoConfig": "evil.X", "AutoModelForCausalLM": "evil.X"},),
    "model_type": ("llama", "mistral", "gemma2", "bert", "evil", "llama_mha2mla", "qwen2"),
    "architectures": (["LlamaForCausalLM"], ["Evil"]),
    "dtype": ("float16", "bfloat16", "float8_e4m3fn", "int8", "torch.float32"),
    "torch_dtype": ("float16", "auto", "float64"),
    "text_config": ({"hidden_size": 8}, {"model_type": "llama"}),
    "head_dim": (8, 16, 17),
    "attention_bias": (True, False),
    "mlp_bias": (True, False),
    "hidden_act": ("gelu", "silu", "relu"),
    "attn_implementation": ("eager", "flash_attention_2", "evil"),
    "_attn_implementation": ("eager", "flash_attention_2", "evil"),
    "attn_logit_softcapping": (30.0, None),
    "clip_qkv": (8.0,),
    "pruned_heads": ({"0": [1]},),
    "is_encoder_decoder": (True,),
    "num_labels": (3, -1),
    "id2label": ({"0": "a"}, {"x": "y"}),
    "to_dict": (3,),
    "save_pretrained": ("x",),
    "__class__": ("x",),
    "attribute_map": ({"hidden_size": "vocab_size"}, {}),
    "sub_configs": ({"a": 1},),
    "base_model_tp_plan": ({"layers.*": "colwise"},),
    "pad_token_id": (0, 255, 256, -1),
    "eos_token_id": (0, [1, 2], [[1]], 10**6),
    "vocab_size": (255, 257, 512),
    "num_key_value_heads": (1, 2, 3, 4, 8),
    "num_attention_heads": (1, 2, 3, 8),
    "num_hidden_layers": (0, 1, 3, 100),
    "intermediate_size": (47, 49),
    "max_position_embeddings": (0, 1, 64),
    "attention_dropout": (0.5,),
    "mha2mla": (None, {}, {"format_version": 99}, {"format_version": "3"}, [], "x"),
    "kv_lora_rank": (0, 1, 24, 512),
    "qk_rope_head_dim": (0, 1, 3, 64),
    "kv_lora_rank_per_layer": ([], [8], [8] * 5, [0] * 5, ["8"] * 5, [8.5] * 5),
    "qk_rope_head_dim_per_layer": ([3] * 5, [2] * 5, None),
    "row_bits_per_layer": ([], [[]], [[4] * 5] * 4, [[5] * 5] * 4, [["4"]], None),
    "kv_b_proj_groups": (None, 0, 1, 3, 4),
    "attention_scale": (0.0, -1.0),
    "q_lora_rank": (0, 8),
}
ROPE = {
    "rope_type": ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"),
    "type": ("linear", "evil"),
    "factor": (1.0, 0.0, -2.0, 0.5),
    "rope_theta": (0.0, 1.0, -1.0, 1e30),
    "original_max_position_embeddings": (0, 64, 1024),
    "low_freq_factor": (1.0, 4.0),
    "high_freq_factor": (4.0, 1.0),
    "partial_rotary_factor": (0.5, 0.0, 2.0, 1.0),
    "attention_factor": (0.0, -1.0, 2.0),
    "beta_fast": (1.0, 32.0),
    "beta_slow": (1.0, 32.0),
    "mscale": (1.0,),
    "mscale_all_dim": (1.0,),
    "truncate": (False,),
    "long_factor": ([1.0] * 4,),
    "short_factor": ([1.0] * 4,),
    "full_attention": ({"rope_type": "default", "rope_theta": 1e4},),
}


def damage(rng: Random, folder: Path) -> str:
    """Put hostile values into ``config.json``, or sometimes into another JSON file."""
    others = sorted(p for p in folder.glob("*.json") if p.name != "config.json")
    path = folder / "config.json"
    if others and rng.random() < 0.2:
        path = rng.choice(others)
    try:
        values = json.loads(path.read_text("utf-8"))
        assert isinstance(values, dict)
    except (ValueError, OSError, AssertionError, RecursionError):
        return f"{path.name}: left as it is"
    rope = values.get("rope_parameters")
    if path.name == "config.json" and isinstance(rope, dict) and rng.random() < 0.25:
        done = _keys(rng, rope, ROPE, rng.choice((1, 2, 3)))
        path.write_text(json.dumps(values))
        return f"config.json: rope_parameters: {done}"
    way = rng.random()
    if way < 0.05:
        text = rng.choice((nested(200_000), "null", "[]", '"x"', "NaN", '{"a":' * 5000, "{}" * 2))
        path.write_text(text)
        return f"{path.name}: {text[:20]}..."
    if way < 0.1:
        key = rng.choice(sorted(values) or ["x"])
        other = value(rng, values.get(key))
        path.write_text(with_duplicate(json.dumps(values), key, other), "utf-8", "replace")
        return f"{path.name}: {key} a second time, {str(other)[:60]!r}"
    if way < 0.12:
        text = json.dumps(values)
        path.write_text(text.replace(":", f': {nested(50_000)}, "x":', 1))
        return f"{path.name}: deeply nested"
    done = _keys(rng, values, KEYS, rng.choice((1, 1, 1, 2, 4)))
    path.write_text(json.dumps(values), "utf-8")
    return f"{path.name}: {done}"


def _keys(rng: Random, values: dict[str, Any], known: dict[str, tuple], count: int) -> str:
    done = []
    for _ in range(count):
        key = rng.choice(sorted({*values, *known}) if rng.random() < 0.5 else sorted(values))
        if rng.random() < 0.1:
            values.pop(key, None)
            done.append(f"no {key}")
            continue
        tried = known.get(key, ())
        old = values.get(key)
        values[key] = rng.choice(tried) if tried and rng.random() < 0.6 else value(rng, old)
        done.append(f"{key} = {str(values[key])[:60]!r}")
    return ", ".join(done)
