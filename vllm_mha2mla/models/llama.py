"""Converted Llama models in vLLM: its own Llama with the attention class swapped."""

from typing import Any

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models import llama as base
from vllm.model_executor.models.utils import WeightsMapper

from vllm_mha2mla.attention.projections import LatentSelfAttention
from vllm_mha2mla.models.weights import TellsLayers


class LlamaMLADecoderLayer(base.LlamaDecoderLayer):
    """vLLM's Llama block with latent attention."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config, attn_layer_type=LatentSelfAttention)


class LlamaMLAModel(base.LlamaModel):
    """vLLM's Llama decoder; query projections are not fused with keys and values here."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )


class LlamaMLAForCausalLM(TellsLayers, base.LlamaForCausalLM):
    """The registered architecture."""

    hf_to_vllm_mapper = LlamaMLAModel.hf_to_vllm_mapper
    packed_modules_mapping = {"gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=LlamaMLADecoderLayer)
        self.prepare(vllm_config)

    def _init_model(
        self,
        vllm_config: VllmConfig,
        prefix: str = "",
        layer_type: type[nn.Module] = LlamaMLADecoderLayer,
    ) -> LlamaMLAModel:
        return LlamaMLAModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
