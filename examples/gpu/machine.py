"""The settings of a run: shapes by machine, folders, limits, and what to do when a check fails."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpu import models
from gpu.processes import STARTING

GIB = 1 << 30
# Full graphs of decode steps without torch.compile: half the default's start, and the attention
# the same. Attention that runs in prefills is called as in eager mode.
GRAPHS = {
    "compilation_config": {
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64],
    }
}
# Read-only, because settings of one engine are made of it and would reach the next.
STARTS: dict[str, Mapping[str, Any]] = {
    "graphs": MappingProxyType(GRAPHS),
    "default": MappingProxyType({}),
    "eager": MappingProxyType({"enforce_eager": True}),
}


@dataclass
class Machine:
    """One run of the check.

    Attributes:
        device: ``cuda``, or ``cpu`` where only the script itself is tried.
        quick: small shapes and loads.
        folder: for checkpoints.
        logs: folder for a log per process.
        timeout: seconds that one engine, reference or conversion may take.
        memory_bytes: of the GPU.
        jobs: engines whose speed does not matter that run side by side.
        start: of ``STARTS``, for engines that need not start as by default.
        engine_arguments: further arguments of ``LLM`` for every engine.
    """

    device: str
    quick: bool
    folder: Path
    logs: Path
    timeout: float
    memory_bytes: int
    jobs: int
    start: str
    engine_arguments: dict[str, Any]
    begin: float

    @property
    def on_gpu(self) -> bool:
        """True where there is a GPU."""
        return self.device == "cuda"

    @property
    def small(self) -> dict[str, int]:
        """Shape of the models that are checked for exactness."""
        return models.SMALL if self.on_gpu else models.TINY

    @property
    def narrow(self) -> dict[str, int]:
        """Shape of the model that is converted at full width."""
        return models.NARROW if self.on_gpu else models.TINY

    @property
    def large(self) -> dict[str, int]:
        """Shape of the models whose speed is measured: as many layers as this GPU can hold."""
        shape = dict(models.LLAMA_3_8B if self.on_gpu else models.TINY)
        while self.on_gpu and 2 * models.parameters(shape) > self.memory_bytes / 2:
            shape["num_hidden_layers"] //= 2
        return shape

    @property
    def large_name(self) -> str:
        """Name of that shape."""
        if not self.on_gpu:
            return "a tiny Llama"
        layers = self.large["num_hidden_layers"]
        return "Llama-3-8B's shape" + ("" if layers == 32 else f" with {layers} layers")

    @property
    def converted_layers(self) -> int:
        """Layers of the model of that shape that is converted."""
        return 2 if self.quick else 4

    @property
    def small_cache(self) -> int:
        """Bytes of cache of an engine whose speed does not matter."""
        return GIB if self.on_gpu else 1 << 26

    @property
    def quick_start(self) -> dict[str, Any]:
        """Arguments of ``LLM`` for an engine that need not start as by default."""
        return dict(STARTS[self.start if self.on_gpu else "eager"])

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every engine."""
        usual = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        return usual if self.on_gpu else usual | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}

    def possible(self, names: Sequence[str]) -> list[str]:
        """List the names of models that this machine can serve: attention is chosen on GPUs."""
        return [name for name in names if self.on_gpu or "@" not in name]

    def log(self, name: str) -> Path:
        """File for the log of a process."""
        kept = "".join(c if c.isalnum() or c in "+-" else "-" for c in name)
        return self.logs / f"{kept}.log"

    def say(self, text: str) -> None:
        """Print a line of progress at once, with the seconds since the start."""
        with STARTING:
            print(f"[{time.monotonic() - self.begin:6.1f} s] {text}", flush=True)

    def each(
        self,
        names: Iterable[str],
        check: Callable[[str], dict[str, Any]],
        at_once: int = 1,
    ) -> dict[str, Any]:
        """Run a check for every name; one that fails leaves its error, and the others go on.

        Args:
            names: of the checks.
            check: gives the figures of one.
            at_once: checks that run side by side.
        """

        def figures(name: str) -> dict[str, Any]:
            begin = time.monotonic()
            try:
                found = check(name)
            except Exception as error:
                found = {"ok": False, "failed": f"{type(error).__name__}: {error}"}
            found["took_seconds"] = round(time.monotonic() - begin, 1)
            self.say(f"{name}: {found.get('failed') or brief(found)}")
            return found

        names = list(names)
        with ThreadPoolExecutor(at_once) as pool:
            return dict(zip(names, pool.map(figures, names), strict=True))


def attention(name: str) -> dict[str, Any]:
    """Arguments of ``LLM`` for the attention that stands in a model's name behind the @."""
    chosen = name.partition("@")[2]
    return {"hf_overrides": {"mha2mla_attention": chosen}} if chosen else {}


def brief(figures: dict[str, Any]) -> str:
    """Show the figures of a check in one line."""
    shown = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
        if not isinstance(value, dict | list)
    )
    return ", ".join(shown)
