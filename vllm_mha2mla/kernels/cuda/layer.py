"""A layer between its projections, on a GPU: see ``reference.ReferenceLayer``."""

from torch import Tensor

from vllm_mha2mla.kernels.cuda import flash
from vllm_mha2mla.kernels.cuda.attention import attend
from vllm_mha2mla.kernels.cuda.batch import CudaBatch
from vllm_mha2mla.kernels.cuda.choose import Ways
from vllm_mha2mla.kernels.cuda.coded_tables import CodedTables
from vllm_mha2mla.kernels.cuda.encode import rotate_and_encode
from vllm_mha2mla.kernels.cuda.expanded import Expansion
from vllm_mha2mla.kernels.cuda.grouped_product import grouped_product
from vllm_mha2mla.kernels.cuda.rotate import rotate_and_write


class CudaLayer:
    """The attention of one layer; it keeps views of the weights and no copies.

    Args:
        cache: the paged cache  # [blocks, block_size, row], with row >= rank + rope; or of coded
            rows  # [blocks, block_size, row_bytes], uint8
        w_uk: ``W_UK``, shared by the query heads of a group  # [groups, nope, rank]
        w_uv: ``W_UV``  # [groups, v, rank]
        inv_freq: frequency of each rotary pair, float32  # [rope/2]
        scale: factor of the scores.
        heads: query heads.
        ways: attention of decodes, and of prefills that are not expanded.
        flash_version: of FlashAttention for the cached rows.
        expansion: of prefills, where FlashAttention takes their keys and values.
        tables: where rows are coded; the way is ``triton`` then.
    """

    def __init__(
        self,
        cache: Tensor,
        w_uk: Tensor,
        w_uv: Tensor,
        inv_freq: Tensor,
        scale: float,
        heads: int,
        ways: Ways,
        flash_version: int | None = None,
        expansion: Expansion | None = None,
        tables: CodedTables | None = None,
    ) -> None:
        self.cache, self.inv_freq, self.scale, self.heads = cache, inv_freq, scale, heads
        self.w_uk, self.w_uv = w_uk, w_uv.transpose(1, 2)
        self.ways, self.flash_version, self.expansion = ways, flash_version or 0, expansion
        self.nope, self.rank = w_uk.shape[1:]
        self.rope, self.v, self.tables = 2 * len(inv_freq), w_uv.shape[1], tables
        self.query_width = cache.shape[-1] if tables is None else self.rank + self.rope

    def __call__(
        self, query: Tensor, kv_latent: Tensor, positions: Tensor, batch: CudaBatch, out: Tensor
    ) -> None:
        """Compute one step: see ``reference.ReferenceLayer``; the query may be changed."""
        tokens = batch.num_tokens
        plan = self.expansion.plan(batch) if self.expansion else []
        absorbed = batch.decode_tokens if plan else tokens
        by_head = query[:tokens].view(tokens, self.heads, -1)  # [tokens, heads, nope + rope]
        latent_query = query.new_empty(absorbed, self.heads, self.query_width)
        # Every row is written before any is read: a request may find its prefix in blocks that
        # another of the same batch fills in this step.
        for part, target, column in (
            (slice(0, absorbed), latent_query, self.rank),
            (slice(absorbed, tokens), by_head[absorbed:], self.nope),
        ):
            tokens_here = (
                *(query[part], kv_latent[part], positions[part], batch.slot_mapping[part]),
                *(self.inv_freq, target, self.cache),
            )
            if self.tables is None:
                rotate_and_write(*tokens_here, self.nope, self.rank, column)
            else:
                rotate_and_encode(*tokens_here, self.tables, self.nope, column)
        out = out[:tokens].view(tokens, self.heads, self.v)
        if absorbed:
            grouped_product(
                by_head[:absorbed, :, : self.nope], self.w_uk, latent_query[..., : self.rank]
            )
            latents = self._attend(latent_query, batch.decode_part() if plan else batch)
            grouped_product(latents, self.w_uv, out[:absorbed])
        if plan and self.expansion:
            self.expansion.attend(by_head[absorbed:], batch, plan, out[absorbed:])

    def _attend(self, query: Tensor, batch: CudaBatch) -> Tensor:
        """Weighted latents of absorbed queries  # [tokens, heads, rank]"""
        way = self.ways.decode if batch.decoding else self.ways.prefill
        if way == "flash":
            rows = flash.attend_rows(query, self.cache, batch, self.scale, self.flash_version)
            return rows[..., : self.rank]
        if way == "flash_whole":
            return flash.attend_whole(query, self.cache, batch, self.scale)[..., : self.rank]
        if way == "flash_split":
            return flash.attend_split(query, self.cache, batch, self.scale, self.rank)
        out = query.new_empty(*query.shape[:2], self.rank)
        attend(
            query,
            self.cache,
            batch.block_table,
            batch.query_start_loc,
            batch.seq_lens,
            batch.max_query_len,
            batch.max_seq_len,
            self.scale,
            self.rank,
            self.rope,
            out,
            tables=self.tables,
        )
        return out
