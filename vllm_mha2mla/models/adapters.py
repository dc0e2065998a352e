"""LoRA adapters in vLLM: those that fit a converted model are served, all others refused.

vLLM copies a matrix that is too small into the first rows of its place, and says nothing.
"""

import re
from collections.abc import Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.model_executor.layers.linear import LinearBase

from vllm_mha2mla.attention.projections import LatentSelfAttention
from vllm_mha2mla.errors import UnsupportedEngineError
from vllm_mha2mla.hf.adapters import MERGE

OF_ATTENTION = re.compile(r"layers\.(\d+)\.self_attn\.(\w+)\.lora_([AB])\b")


def check_adapters() -> None:
    """Check adapters before the engine of this process loads them. Idempotent.

    ``WorkerLoRAManager._load_adapter``: vLLM asks the model nothing about an adapter.
    """
    load = WorkerLoRAManager._load_adapter
    if getattr(load, "__wrapped__", None) is not None:
        return

    @wraps(load)
    def checked(manager: WorkerLoRAManager, lora_request: LoRARequest) -> Any:
        folder = Path(get_adapter_absolute_path(lora_request.lora_path))
        model = manager._adapter_manager.model
        refuse_other_adapters(lora_request.lora_name, model, adapter_shapes(folder))
        return load(manager, lora_request)

    WorkerLoRAManager._load_adapter = checked  # type: ignore[method-assign]


def adapter_shapes(folder: Path) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of an adapter; nothing where vLLM will miss the files."""
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, tuple(opened.get_slice(name).get_shape())
        return
    for file in (folder / "adapter_model.bin", folder / "adapter_model.pt"):
        if file.is_file():
            tensors = torch.load(file, map_location="meta", weights_only=True)
            yield from ((name, tuple(tensor.shape)) for name, tensor in tensors.items())
            return


def refuse_other_adapters(
    adapter: str, model: Any, shapes: Iterable[tuple[str, tuple[int, ...]]]
) -> None:
    """Refuse an adapter that the layers of a model cannot apply.

    Args:
        adapter: its name.
        model: converted, with vLLM's layers.
        shapes: name and shape of the adapter's tensors.

    Raises:
        UnsupportedEngineError: it was made for the original, or adapts what vLLM does not call.
    """
    attentions = {
        int(name.split(".")[-2]): module
        for name, module in model.named_modules()
        if isinstance(module, LatentSelfAttention)
    }
    for name, shape in shapes:
        found = OF_ATTENTION.search(name)
        if found is None or int(found[1]) not in attentions:
            continue
        layer = getattr(attentions[int(found[1])], found[2], None)
        if layer is None:
            raise UnsupportedEngineError(
                f"LoRA {adapter}: {name} was made for the original model; {MERGE}"
            )
        base = getattr(layer, "base_layer", layer)
        if not isinstance(base, LinearBase):
            raise UnsupportedEngineError(
                f"LoRA {adapter}: adapters on {found[2]} are not served; merge the adapter into "
                "the converted model (PEFT's merge_and_unload) and serve that, or train without it"
            )
        size = base.input_size if found[3] == "A" else base.output_size
        if shape[1 if found[3] == "A" else 0] != size:
            raise UnsupportedEngineError(
                f"LoRA {adapter}: {name} has another shape than this model's {found[2]}, so it "
                f"was made for the original; {MERGE}"
            )
