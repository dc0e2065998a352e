"""The undamaged checkpoints: sources of several families, GGUF files, converted ones, a recipe."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.support.gguf import VOCABULARY, gguf_tensors, write_gguf
from tests.support.ropes import GGUF_YARN
from tests.support.tiny import save_tiny, tiny_llama, tiny_tokenizer
from tests.support.tiny_converted import save_tiny_coded, save_tiny_converted
from tests.support.tiny_families import FAMILIES

SMALL = {"hidden_size": 32, "intermediate_size": 48}
RECIPE = """\
method: calibrated
cache_fraction: 0.27
calibration: [text.txt]
calibration_tokens: 1024
window: 128
"""
Write = Callable[[Path], None]


def _family(name: str) -> Write:
    def write(case: Path) -> None:
        model = FAMILIES[name].original(**SMALL)
        model.to(torch.bfloat16).save_pretrained(case / "model")
        tiny_tokenizer().save_pretrained(case / "model")

    return write


def _llama(shard_size: str = "1GB", **changes: object) -> Write:
    return lambda case: save_tiny(case / "model", shard_size=shard_size, **SMALL | changes)


def _gguf(kind: type, metadata: dict | None = None, split: int = 1, **changes: object) -> Write:
    def write(case: Path) -> None:
        model = tiny_llama(**SMALL | {"vocab_size": VOCABULARY} | changes)
        tensors = {
            name: values.astype(kind) if values.ndim > 1 else values
            for name, values in gguf_tensors(model).items()
        }
        (case / "model").mkdir()
        write_gguf(case / "model" / "m.gguf", tensors, model.config, metadata, split=split)

    return write


def _recipe(case: Path) -> None:
    (case / "model").mkdir()
    (case / "model" / "recipe.yaml").write_text(RECIPE)


SPECIAL = {"tokenizer.ggml.bos_token_id": 260, "tokenizer.ggml.eos_token_id": 257}
BASES: dict[str, dict[str, Write]] = {
    "source": {
        "llama": _llama(),
        "llama-shards": _llama("20KB", tie_word_embeddings=False),
        "qwen2": _family("Qwen2"),
        "qwen3": _family("Qwen3"),
        "phi3": _family("Phi3"),
        "granite": _family("Granite"),
        "olmo2": _family("Olmo2"),
        "smollm3": _family("SmolLM3"),
        "gemma": _family("Gemma"),
        "mixtral": _family("Mixtral"),
        "cohere": _family("Cohere"),
    },
    "gguf": {
        "float32": _gguf(np.float32, SPECIAL),
        "float16-yarn": _gguf(np.float16, SPECIAL | GGUF_YARN, tie_word_embeddings=False),
        "parts": _gguf(np.float32, {"tokenizer.chat_template": "{{ messages }}"}, split=2),
    },
    "converted": {
        "plain": lambda case: save_tiny_converted(case / "model"),
        "query-rank": lambda case: save_tiny_converted(case / "model", q_lora_rank=12),
        "coded": lambda case: save_tiny_coded(case / "model"),
    },
    "recipe": {"recipe": _recipe},
}
"""Kind -> name -> function that writes it into a case's folder."""
