"""Convert tiny models on the CPU and on a pretended GPU, and print what differs, as JSON.

In a process of its own: a device, once registered, is there for all that follows.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from conversion.checkpoint.inspection import inspect
from conversion.pipeline import Options, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime import device, precision
from conversion.runtime.progress import Progress
from conversion.source import open_source
from tests.support.convert import windows
from tests.support.pretend_gpu import GPU, PretendGpu
from tests.support.tiny import TEXT, save_tiny


def run(folder: Path, source: Path, recipe: Recipe, on: str, offload: bool):
    out = folder / on.partition(":")[0]
    options = Options(on, torch.float32, offload=folder if offload else None)
    convert(open_source(str(source)), out, recipe, options, Progress())
    return inspect(out), out


@torch.no_grad()
def logits(checkpoint: Path):
    return AutoModelForCausalLM.from_pretrained(checkpoint)(windows()[:1]).logits


def differences(folder: Path, request: dict) -> dict:
    source = save_tiny(folder / "source", request["variant"])
    text = folder / "calibration.txt"
    text.write_text(TEXT)
    values = {"calibration_tokens": 512, "window": 64, "held_out_tokens": 128}
    recipe = Recipe(calibration=[str(text)], **values | request["recipe"])
    expected, on_cpu = run(folder, source, recipe, "cpu", offload=False)
    device._room = lambda device: request["room"]
    gpu = PretendGpu()
    with gpu:
        found, on_gpu = run(folder, source, recipe, str(GPU), request["offload"])
    before, after = logits(on_cpu), logits(on_gpu)
    widths = ("kv_lora_rank", "qk_rope_head_dim")
    return {
        "layer_widths": [
            rank + rope
            for rank, rope in zip(found.kv_lora_rank, found.qk_rope_head_dim, strict=True)
        ],
        "same_widths": all(getattr(found, key) == getattr(expected, key) for key in widths),
        "figures": [[value, found.figures[key]] for key, value in expected.figures.items()],
        "logits": float((after - before).norm() / before.norm()),
        "crossings": gpu.crossings,
    }


def main() -> None:
    # The pretended one has no bfloat16: what differs is then rounding of float32.
    precision.bfloat16_is_fast = lambda device="cpu": False
    found = []
    for request in json.loads(sys.argv[1]):
        with tempfile.TemporaryDirectory() as folder:
            found.append(differences(Path(folder), request))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
