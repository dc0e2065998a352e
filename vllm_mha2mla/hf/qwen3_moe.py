"""Converted Qwen3 mixture-of-experts models in transformers: norms as in Qwen3."""

from typing import Any

from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3MoeModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from vllm_mha2mla.hf.make import make_classes


def _norms(config: Any) -> tuple[nn.Module, nn.Module]:
    d, eps = config.head_dim, config.rms_norm_eps
    return Qwen3MoeRMSNorm(d, eps), Qwen3MoeRMSNorm(d, eps)


Qwen3MoeMLAConfig, Qwen3MoeMLAModel, Qwen3MoeMLAForCausalLM = make_classes(
    __name__, "Qwen3Moe", Qwen3MoeConfig, Qwen3MoeModel, Qwen3MoeForCausalLM, _norms
)
