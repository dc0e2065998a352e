"""Converted Qwen3 models in transformers: a norm in every head of queries and keys."""

from typing import Any

from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from vllm_mha2mla.hf.make import make_classes


def _norms(config: Any) -> tuple[nn.Module, nn.Module]:
    d, eps = config.head_dim, config.rms_norm_eps
    return Qwen3RMSNorm(d, eps), Qwen3RMSNorm(d, eps)


Qwen3MLAConfig, Qwen3MLAModel, Qwen3MLAForCausalLM = make_classes(
    __name__, "Qwen3", Qwen3Config, Qwen3Model, Qwen3ForCausalLM, _norms
)
