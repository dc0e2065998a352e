"""Memory and speed of the engine: a converted model's shape beside the original's."""

import json
from collections.abc import Sequence
from typing import Any

from gpu import models
from gpu.engine import throughput
from gpu.machine import GIB, Machine, attention, brief
from gpu.processes import ProcessError, isolated

ORIGINAL = "original"
WIDTHS: dict[str, models.Widths | None] = {
    ORIGINAL: None,
    "192+64": ((192, 64),),
    "512+64": ((512, 64),),
    "512+64@vllm": ((512, 64),),
    "coded": ((1024, 192),),
}
TINY_WIDTHS: dict[str, models.Widths | None] = {
    ORIGINAL: None,
    "192+64": ((24, 8),),
    "coded": ((24, 16),),
}
NAMES = tuple(WIDTHS)
LOADS = "64x512+256,16x16384+256,32x4096+256@8"
QUICK_LOADS = "64x512+64,8x16384+32"
TINY_LOADS = "4x32+16,4x64+8@0.03125"
CACHE_GIB = 40
# Of weights and cache, for the activations of a step and the graphs.
SPARE_GIB = 8


def parse_loads(text: str) -> list[dict[str, int]]:
    """Parse loads such as ``32x4096+256@8``: requests, input, output, and GiB of cache at most."""
    loads = []
    for part in text.split(","):
        load, _, cache = part.partition("@")
        requests, _, lengths = load.partition("x")
        given, _, output = lengths.partition("+")
        loads.append(
            {
                "requests": int(requests),
                "input": int(given),
                "output": int(output),
                "cache_bytes": int(float(cache or 0) * GIB),
            }
        )
    # What an engine has once given up of its cache it does not get back.
    return sorted(loads, key=lambda load: -(load["cache_bytes"] or 1 << 62))


def engines(machine: Machine, names: Sequence[str], loads: list[dict[str, int]]) -> dict[str, Any]:
    """Start one engine per model with the same memory for its cache, and put the loads on it."""
    widths = WIDTHS if machine.on_gpu else TINY_WIDTHS
    shape = machine.large
    cache = _cache_bytes(machine, shape)
    longest = max((load["input"] + load["output"] for load in loads), default=256)

    def engine(name: str) -> Any:
        folder = machine.folder / f"speed-{name}"
        models.write_config(folder, shape, widths[name], name == "coded")
        settings = {
            "model": str(folder),
            "load_format": "dummy",
            "kv_cache_memory_bytes": cache,
            # With the size of the cache given, only a check that so much is free.
            "gpu_memory_utilization": 0.5,
            "max_model_len": -(-(longest + 1) // 128) * 128,
            "max_num_seqs": 64,
        }
        settings |= machine.quick_start | attention(name) | machine.engine_arguments
        log = machine.log(f"speed-{name}")
        kept = folder / "figures.json"
        arguments = (settings, loads, shape["vocab_size"], kept)
        try:
            run = isolated(log, machine.timeout, machine.environment, throughput, *arguments)
        except ProcessError as error:
            if not kept.is_file():
                raise
            run = json.loads(kept.read_text("utf-8"))
            missing = len(loads) - len(run["loads"])
            run["loads"] += [{"failed": str(error)}] * missing
        run["ok"] = not any("failed" in figures for figures in run["loads"])
        labels = [_label(load) for load in loads]
        run["loads"] = dict(zip(labels, run["loads"], strict=True))
        for label, figures in run["loads"].items():
            machine.say(f"{name}: {label}: {brief(figures)}")
        return run

    possible = [name for name in machine.possible(names) if name in widths]
    found = machine.each(possible, engine)
    return {"shape": machine.large_name, "cache_bytes": cache, "engines": found}


def _cache_bytes(machine: Machine, shape: dict[str, int]) -> int:
    if not machine.on_gpu:
        return 1 << 26
    weights = 2 * models.parameters(shape)
    left = (machine.memory_bytes - weights) // GIB - SPARE_GIB
    return max(1, min(CACHE_GIB, left)) * GIB


def _label(load: dict[str, int]) -> str:
    bound = f" in {load['cache_bytes'] / GIB:g} GiB" if load["cache_bytes"] else ""
    return f"{load['requests']} of {load['input']} + {load['output']}{bound}"
