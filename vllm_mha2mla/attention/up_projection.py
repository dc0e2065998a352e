"""The absorbed projections ``W_UK`` and ``W_UV`` of one layer, for the query heads of this rank."""

from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.utils import set_weight_attrs

from vllm_mha2mla.attention.constants import not_loaded
from vllm_mha2mla.errors import CheckpointError


class UpProjection(nn.Module):
    """``W_UK`` and ``W_UV``, once for every group of query heads that shares them.

    A plain parameter, because vLLM's linear layers repack or quantise their weight after loading.
    This weight is never multiplied as a whole: the kernel absorbs one half into the queries and the
    other into the outputs, in every step. Folding the halves into the projections around them
    instead would make those larger than this weight wherever the rank is above the head widths.

    Args:
        num_heads: query heads of the model.
        groups: groups of query heads; see ``config.up_projection_groups``.
        nope: width of a head's query without rotation.
        v: width of a head's value.
        rank: width of the latent.
    """

    def __init__(self, num_heads: int, groups: int, nope: int, v: int, rank: int) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        here = groups_of_rank(num_heads, groups, ranks, get_tensor_model_parallel_rank())
        self.num_heads, self.nope, self.v = num_heads // ranks, nope, v
        self.groups = len(here)
        rows = len(here) * (nope + v)
        self.weight = nn.Parameter(not_loaded((rows, rank)), requires_grad=False)

        # vLLM's reloading of weights puts another tensor in the place of ``param``, by this name.
        def load(param: Tensor, loaded_weight: Tensor) -> None:
            by_group = split_by_group(loaded_weight, groups, nope + v, rank)
            default_weight_loader(param, by_group[here].flatten(0, 1))

        set_weight_attrs(self.weight, {"weight_loader": load})

    def forward(self) -> tuple[Tensor, Tensor]:
        """``W_UK``  # [groups, nope, rank], and ``W_UV``  # [groups, v, rank]"""
        both = self.weight.view(self.groups, self.nope + self.v, -1)
        return both[:, : self.nope], both[:, self.nope :]


def split_by_group(weight: Tensor, groups: int, rows: int, rank: int) -> Tensor:
    """The up-projections of every group  # [groups * rows, rank] -> [groups, rows, rank]

    Raises:
        CheckpointError: the weight has another shape, even if as many numbers.
    """
    if weight.shape != (groups * rows, rank):
        raise CheckpointError(
            f"kv_b_proj has shape {list(weight.shape)}, config.json promises "
            f"{[groups * rows, rank]}; convert the model again"
        )
    return weight.view(groups, rows, rank)


def groups_of_rank(num_heads: int, groups: int, ranks: int, rank: int) -> list[int]:
    """Groups that a tensor-parallel rank's query heads read, such that they divide the heads.

    A group is repeated where a rank's heads are not the same number of each of its groups.
    """
    heads, size = num_heads // ranks, num_heads // groups
    of_heads = [head // size for head in range(rank * heads, (rank + 1) * heads)]
    if heads % size == 0 or size % heads == 0:
        return sorted(set(of_heads))
    return of_heads
