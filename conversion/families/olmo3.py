"""OLMo-3, where no layer has a sliding window: OLMo-2 with frequencies for each kind of layer."""

from typing import Any

from torch import Tensor
from transformers import Olmo3ForCausalLM
from transformers.models.olmo3.modeling_olmo3 import Olmo3DecoderLayer, Olmo3RotaryEmbedding

from conversion.families.family import Family
from vllm_mha2mla.hf.olmo3 import Olmo3MLAConfig, Olmo3MLAForCausalLM

FULL = "full_attention"


class _OfFullAttention(Olmo3RotaryEmbedding):  # type: ignore[misc] # transformers is not typed
    """The rotary embedding of the layers that see everything, as other families have it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.inv_freq: Tensor = getattr(self, f"{FULL}_inv_freq")
        self.attention_scaling: float = getattr(self, f"{FULL}_attention_scaling")

    def forward(self, x: Tensor, positions: Tensor, layer_type: str = FULL) -> Any:
        return super().forward(x, positions, layer_type)


OLMO3 = Family(
    model_type="olmo3",
    config_class=Olmo3MLAConfig,
    causal_lm=Olmo3ForCausalLM,
    converted_causal_lm=Olmo3MLAForCausalLM,
    decoder_layer=Olmo3DecoderLayer,
    rotary_embedding=_OfFullAttention,
    qk_norm=lambda config: True,
    residual_factor=lambda config: None,
)
