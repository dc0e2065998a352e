"""The attention block of a decoder layer: projections around the latent cache attention."""

from torch import Tensor, nn
from transformers import PreTrainedConfig
from vllm.config import CacheConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionType

from vllm_mha2mla.attention.constants import constant, refuse_not_loaded
from vllm_mha2mla.attention.joined import JoinedProducts
from vllm_mha2mla.attention.layer import LatentCacheAttention
from vllm_mha2mla.attention.normed_inputs import add_normed_inputs, normed_inputs
from vllm_mha2mla.attention.up_projection import UpProjection
from vllm_mha2mla.coding.row_code import CodedRow, row_codes, served_codes
from vllm_mha2mla.config import (
    CONSTANTS,
    FIRST_ROW,
    ROPE_INV_FREQ,
    ROTARY_MEAN,
    latent_widths,
    up_projection_groups,
)
from vllm_mha2mla.errors import UnsupportedEngineError
from vllm_mha2mla.kernels.cuda.choose import option_of


class LatentSelfAttention(nn.Module):
    """Takes the place of a vLLM decoder block's attention class (``attn_layer_type``).

    The constructor's arguments are those vLLM's ``LlamaDecoderLayer`` passes, and the norms of
    queries and keys where the source has them (``normed_inputs``).
    With ``q_lora_rank``, the query comes from its own latent (eqs. 37-38, without the norm).
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        max_position_embeddings: int = 8192,
        quant_config: QuantizationConfig | None = None,
        bias: bool = False,
        bias_o_proj: bool = False,
        cache_config: CacheConfig | None = None,
        prefix: str = "",
        attn_type: str = AttentionType.DECODER,
        norms: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        ranks = get_tensor_model_parallel_world_size()
        if num_heads % ranks:
            raise UnsupportedEngineError(
                f"--tensor-parallel-size {ranks} does not divide the model's {num_heads} heads"
            )
        self.num_heads = num_heads // ranks
        self.nope: int = config.qk_nope_head_dim
        self.v: int = config.v_head_dim
        layer = extract_layer_index(prefix)
        widths = latent_widths(config)[layer]
        codes = row_codes(config)
        code = None if codes is None else codes[layer]
        self.rank, self.rope = widths.kv_lora_rank, widths.qk_rope_head_dim

        self.q_rank: int | None = config.q_lora_rank
        self.normed = norms is not None
        if norms is not None:
            add_normed_inputs(self, config, widths, norms, code is not None, quant_config, prefix)
        else:
            rows_bias = bias or code is not None
            self._add_inputs(hidden_size, num_heads, bias, rows_bias, quant_config, prefix)
        self.o_proj = RowParallelLinear(
            num_heads * self.v,
            hidden_size,
            bias=True,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        # In 16 bits, rotary angles of long contexts would be wrong by whole turns.
        self.rope_inv_freq = constant(f"{prefix}.{ROPE_INV_FREQ}", self.rope // 2)
        coded = None
        if code is not None:
            self.rotary_mean = constant(f"{prefix}.{ROTARY_MEAN}", self.rope)
            self.first_row = constant(f"{prefix}.{FIRST_ROW}", widths.width)
            coded = CodedRow(code, self.rotary_mean, self.first_row)
        # Rows are stored as they are where the user asks for it: vectors that a coded row is
        # relative to are a part of these.
        cache_dtype = cache_config.cache_dtype if cache_config else "auto"
        self.uncoded = coded is not None and served_codes(config, cache_dtype) is None
        sizes = (num_heads, up_projection_groups(config), self.nope, self.v, self.rank)
        self.kv_b_proj: nn.Module
        self.attn: nn.Module
        if option_of(config) == "vllm":
            from vllm_mha2mla.attention.native import NativeAttention, repeated_up_projection

            self.kv_b_proj = repeated_up_projection(*sizes, f"{prefix}.kv_b_proj")
            self.attn = NativeAttention(
                *(self.kv_b_proj, self.rope_inv_freq, self.num_heads, self.nope, self.v, widths),
                *(config.attention_scale, cache_config, quant_config, f"{prefix}.attn"),
            )
        else:
            self.kv_b_proj = UpProjection(*sizes)
            self.attn = LatentCacheAttention(
                *(self.kv_b_proj, self.rope_inv_freq, widths),
                *(config.attention_scale, cache_config, f"{prefix}.attn"),
                coded=None if self.uncoded else coded,
            )

    def _add_inputs(
        self,
        hidden_size: int,
        num_heads: int,
        bias: bool,
        rows_bias: bool,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        queries, row = num_heads * (self.nope + self.rope), self.rank + self.rope
        self.kv_a_proj_with_mqa = ReplicatedLinear(
            hidden_size,
            row,
            bias=rows_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.kv_a_proj_with_mqa",
        )
        if self.q_rank is None:
            self.q_proj = ColumnParallelLinear(
                hidden_size,
                queries,
                bias=bias,
                quant_config=quant_config,
                prefix=f"{prefix}.q_proj",
            )
            self.products = JoinedProducts(
                *(self, ("q_proj", "kv_a_proj_with_mqa")),
                (self.num_heads * (self.nope + self.rope), row),
            )
        else:
            # Replicated: the heads of every rank read the whole query latent.
            self.q_a_proj = ReplicatedLinear(
                hidden_size,
                self.q_rank,
                bias=False,
                quant_config=quant_config,
                prefix=f"{prefix}.q_a_proj",
            )
            self.q_b_proj = ColumnParallelLinear(
                self.q_rank,
                queries,
                bias=bias,
                quant_config=quant_config,
                prefix=f"{prefix}.q_b_proj",
            )

    def weights_loaded(self) -> None:
        """Check attention's own weights, and join the projections of the hidden states.

        Called again when weights are exchanged.

        Raises:
            CheckpointError: one of them was not in the checkpoint.
        """
        for name, tensor in self.named_parameters():
            if name.endswith((*CONSTANTS, "kv_b_proj.weight")):
                refuse_not_loaded(f"{self.prefix}.{name}", tensor)
        if self.q_rank is None:
            self.products.weights_loaded()

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """Attention of a flat batch of tokens.

        Args:
            positions: position of each token in its request  # [tokens]
            hidden_states: normed input  # [tokens, hidden]
        """
        query, kv_latent = self._inputs(hidden_states)
        if self.uncoded:
            mean = nn.functional.pad(self.rotary_mean, (self.rank, 0))  # [rank + rope]
            kv_latent = kv_latent + mean.to(kv_latent.dtype)
        out = self.attn(query, kv_latent, positions)  # [tokens, heads * v]
        output: Tensor = self.o_proj(out)[0]
        return output

    def _inputs(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """# [tokens, hidden] -> [tokens, heads * (nope + rope)], [tokens, rank + rope]"""
        if self.normed:
            return normed_inputs(self, hidden_states)
        if self.q_rank is None:
            query, kv_latent = self.products(hidden_states)
            return query, kv_latent
        latent, _ = self.q_a_proj(hidden_states)  # [tokens, q_rank]
        return self.q_b_proj(latent)[0], self.kv_a_proj_with_mqa(hidden_states)[0]
