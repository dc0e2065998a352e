"""A device named ``pretend:0`` that computes on the CPU, and refuses what a GPU would refuse.

Its tensors are not on the CPU, as far as anyone can see, so that code takes the branches it takes
on a GPU. Operations on tensors of both places fail, and every tensor that crosses over is counted.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
GPU = torch.device("pretend:0")
aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default}
# Indices may be on the CPU, and values of one number.
MIXING = CROSSING | {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}

LAZY = {
    aten._conj.default: aten.conj_physical.default,
    aten._neg_view.default: aten.neg.default,
}


class OnGpu(Tensor):
    """A tensor that says that it is on a GPU.

    Args:
        inner: the same on the CPU.
    """

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"OnGpu({self.inner!r})"

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {}, Counter())


def compute(func: Any, args: Any, kwargs: Any, crossings: Counter) -> Any:
    tensors = [x for x in tree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_gpu = [x for x in tensors if isinstance(x, OnGpu)]
    on_cpu = [x for x in tensors if not isinstance(x, OnGpu) and x.device.type == "cpu"]
    if func not in MIXING and on_gpu and any(x.dim() for x in on_cpu):
        raise RuntimeError(f"{func}: tensors on {GPU} and on cpu")
    if func is aten._fused_sdp_choice.default and on_gpu:
        return 0  # plain products: the CPU's fused kernel is another operation
    # Lazy views, which a wrapper would lose.
    func = LAZY.get(func, func)
    device = kwargs.get("device")
    result_on_gpu = device.type == GPU.type if device is not None else bool(on_gpu)
    if func in CROSSING:
        source = args[1] if func is aten.copy_.default else args[0]
        target = isinstance(args[0], OnGpu) if func is aten.copy_.default else result_on_gpu
        if isinstance(source, OnGpu) != target and source.device.type != "meta":
            crossings["to the GPU" if target else "to the CPU"] += source.nbytes
            crossings["times"] += 1
    if device is not None and device.type == GPU.type:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner_args, inner_kwargs = tree.tree_map_only(OnGpu, lambda x: x.inner, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if not result_on_gpu and func is not aten.copy_.default:
        return result
    # What is changed in place stays the same tensor.
    known = {id(x.inner): x for x in on_gpu}
    return tree.tree_map_only(
        Tensor,
        lambda x: known.get(id(x)) if id(x) in known else OnGpu(x) if result_on_gpu else x,
        result,
    )


class PretendGpu(TorchDispatchMode):
    """Within it there is a GPU.

    Attributes:
        crossings: bytes that went to the GPU and to the CPU, and how many times.
    """

    def __init__(self):
        super().__init__()
        self.crossings = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {}, self.crossings)
