"""One step's batch in the form that the GPU layer takes."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vllm_mha2mla.kernels.batch import PagedBatch

T = TypeVar("T")


@dataclass
class CudaBatch(PagedBatch):
    """Requests of one step: decodes first, then prefills.

    The host knows lengths only as far as vLLM does: ``max_seq_len`` may be too large (a captured
    graph is replayed with any shorter context), a prefill's lengths are exact. Nothing here is read
    back from the GPU.

    Attributes:
        max_query_len: the most new tokens of a request.
        max_seq_len: an upper bound of the contexts.
        decodes: requests of few new tokens, at the front.
        decode_tokens: their new tokens.
        decode_query_len: the most new tokens of one of them.
        prefills: new tokens and context of every other request; empty where the host does not know.
        num_splits: the most parts of one context in FlashAttention; 0 leaves it to the library.
        made: what the first layer of a kind makes in a step, for the others.
    """

    max_query_len: int
    max_seq_len: int
    decodes: int
    decode_tokens: int
    decode_query_len: int
    prefills: Sequence[tuple[int, int]] = ()
    num_splits: int = 0
    made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Make something for all layers that ask for it under this key in this step."""
        if key not in self.made:
            self.made[key] = make()
        result: T = self.made[key]
        return result

    @property
    def decoding(self) -> bool:
        """All requests have few new tokens."""
        return self.max_query_len <= self.decode_query_len

    def decode_part(self) -> "CudaBatch":
        """The decodes alone."""
        return self.once(
            "decodes",
            lambda: replace(
                self,
                num_tokens=self.decode_tokens,
                query_start_loc=self.query_start_loc[: self.decodes + 1],
                seq_lens=self.seq_lens[: self.decodes],
                block_table=self.block_table[: self.decodes],
                slot_mapping=self.slot_mapping[: self.decode_tokens],
                max_query_len=self.decode_query_len,
                prefills=(),
            ),
        )
