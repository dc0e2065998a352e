"""The machine that the figures were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from conversion.bench.gpus import gpus
from conversion.bench.results import Machine

# Beginnings of variables that change the speed. Not all of vLLM's: one is a key.
SPEED_VARIABLES = (
    *("OMP_", "KMP_", "GOMP_", "MALLOC_", "VLLM_CPU_", "LD_PRELOAD"),
    *("CUDA_", "PYTORCH_", "VLLM_USE_", "VLLM_FLASH", "VLLM_MHA2MLA_"),
)
CPUINFO = Path("/proc/cpuinfo")


def machine() -> Machine:
    """Describe this machine, its versions, and the environment that the servers inherit."""
    return Machine(
        cpu=_cpu(),
        cores=_cores(),
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus(),
        python=platform.python_version(),
        vllm=_version("vllm"),
        torch=_version("torch"),
        environment={
            name: value for name, value in os.environ.items() if name.startswith(SPEED_VARIABLES)
        },
    )


def _cpu() -> str:
    if CPUINFO.is_file():
        for line in CPUINFO.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    # Only the cores that this process may use.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
