"""vLLM's own MLA layer, for checkpoints whose sizes are DeepSeek's.

It brings vLLM's tuned kernels for every GPU, and is asked for by ``mha2mla_attention: vllm``
(``native_config.py``). It wants the up-projections once per head.
"""

import torch
from torch import Tensor, nn
from vllm.config import CacheConfig
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig

from vllm_mha2mla.attention.up_projection import split_by_group
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.rope import apply_rotary, rotary_angles


class NativeAttention(nn.Module):
    """Takes the place of ``LatentCacheAttention``, around vLLM's layer.

    Args:
        kv_b_proj: the up-projections of this rank's heads.
        inv_freq: frequency of each rotary pair, float32  # [rope/2]
        heads: query heads of this rank.
        nope: width of a head's query without rotation.
        v: width of a head's value.
        widths: of the cache.
        scale: factor of the scores.
        cache_config: vLLM's cache settings.
        quant_config: vLLM's quantisation of weights.
        prefix: the layer's name, under which the engine finds it.
    """

    def __init__(
        self,
        kv_b_proj: nn.Module,
        inv_freq: nn.Parameter,
        heads: int,
        nope: int,
        v: int,
        widths: LatentWidths,
        scale: float,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        # In a tuple, because it is the enclosing module's parameter and not this one's.
        self.frequencies = (inv_freq,)
        self.heads, self.nope, self.v, self.widths = heads, nope, v, widths
        self.mla = MLAAttention(
            num_heads=heads,
            scale=scale,
            qk_nope_head_dim=nope,
            qk_rope_head_dim=widths.qk_rope_head_dim,
            v_head_dim=v,
            q_lora_rank=None,
            kv_lora_rank=widths.kv_lora_rank,
            kv_b_proj=kv_b_proj,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=prefix,
        )

    def forward(self, query: Tensor, kv_latent: Tensor, positions: Tensor) -> Tensor:
        """See ``LatentCacheAttention.forward``."""
        rank, rope = self.widths.kv_lora_rank, self.widths.qk_rope_head_dim
        by_head = query.view(-1, self.heads, self.nope + rope)  # [tokens, heads, nope + rope]
        q_nope, q_rope = by_head.split((self.nope, rope), dim=-1)
        c, k_rope = kv_latent.split((rank, rope), dim=-1)  # [tokens, rank | rope]
        cos, sin = rotary_angles(positions, self.frequencies[0])  # [tokens, rope/2]
        q_rope = apply_rotary(q_rope, cos.unsqueeze(1), sin.unsqueeze(1))
        out: Tensor = self.mla(
            torch.cat((q_nope, q_rope), dim=-1),
            c.contiguous(),
            apply_rotary(k_rope, cos, sin).unsqueeze(1),
            output_shape=torch.Size((query.shape[0], self.heads * self.v)),
        )
        return out


def repeated_up_projection(
    num_heads: int, groups: int, nope: int, v: int, rank: int, prefix: str
) -> ColumnParallelLinear:
    """The up-projections as a linear layer of vLLM, each group's repeated for its heads.

    Args:
        num_heads: query heads of the model.
        groups: groups of them that share the up-projections in the checkpoint.
        nope: width of a head's query without rotation.
        v: width of a head's value.
        rank: width of the latent.
        prefix: the layer's name.
    """
    linear = ColumnParallelLinear(rank, num_heads * (nope + v), bias=False, prefix=prefix)
    load_shard = linear.weight.weight_loader

    # vLLM's reloading of weights puts another tensor in the place of ``param``, by this name.
    def load(param: nn.Parameter, loaded_weight: Tensor) -> None:
        by_group = split_by_group(loaded_weight, groups, nope + v, rank)
        load_shard(param, by_group.repeat_interleave(num_heads // groups, dim=0).flatten(0, 1))

    linear.weight.weight_loader = load
    return linear
