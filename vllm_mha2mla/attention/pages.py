"""The pages of a cache that latent layers share with layers that keep the source's attention.

vLLM gives all layers pages of the same bytes, and layers of a kind pages of the same tokens. A kept
layer's page holds the keys and values of one block of tokens. A latent layer's page has as many
bytes, and holds as many blocks' rows as fit: with a quarter of the bytes, four times the tokens.
"""

from dataclasses import dataclass

from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

from vllm_mha2mla.coding.row_code import served_codes
from vllm_mha2mla.config import latent_widths
from vllm_mha2mla.padding import Target, row_bytes, rows_beside


@dataclass(frozen=True)
class Page:
    """A page of every latent layer.

    Attributes:
        tokens: whose rows it holds.
        row_bytes: of the widest row of any latent layer.
        page_bytes: of the page, what no row fills included.
    """

    tokens: int
    row_bytes: int
    page_bytes: int


def shared_page(vllm_config: VllmConfig) -> Page | None:
    """The page of every latent layer; ``None`` where all layers are latent."""
    rows, kept = cached_bytes(vllm_config)
    if all(rows):
        return None
    widest, block = max(rows), vllm_config.cache_config.block_size
    return Page(rows_beside(widest, kept) * block, widest, max(kept, widest) * block)


def cached_bytes(vllm_config: VllmConfig) -> tuple[list[int], int]:
    """Bytes per token on this rank.

    Returns:
        of every layer's rows, 0 in layers that keep the source's attention; and of the keys and
        values that such a layer caches.
    """
    model, cache_dtype = vllm_config.model_config, vllm_config.cache_config.cache_dtype
    size = kv_cache_dtype_str_to_dtype(cache_dtype, model).itemsize
    config = model.hf_config
    target: Target = "cpu" if current_platform.is_cpu() else "cuda"
    rows = row_bytes(latent_widths(config), size, target, served_codes(config, cache_dtype))
    heads = model.get_num_kv_heads(vllm_config.parallel_config)
    return rows, 2 * heads * model.get_head_size() * size
