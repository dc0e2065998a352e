"""The differences between the vLLM releases that ``versions.VLLM`` names, for the whole package.

What is here works with all of them; the code elsewhere knows one vLLM.
"""

from dataclasses import fields
from typing import Any

from vllm.v1.kv_cache_interface import MLAAttentionSpec

REPLICATED: dict[str, Any] = (
    {"max_tp_shards": 1}
    if "max_tp_shards" in {field.name for field in fields(MLAAttentionSpec)}
    else {}
)
"""Arguments of ``MLAAttentionSpec`` for a cache that every tensor-parallel rank holds whole.

vLLM 0.30 has none: it does not count such ranks as replicas.
"""
