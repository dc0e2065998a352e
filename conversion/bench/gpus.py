"""The NVIDIA GPUs of this machine, by ``nvidia-smi``: no process of ours may hold one."""

import os
import subprocess

from pydantic import BaseModel

FIELDS = ("name", "memory.total", "driver_version")
VISIBLE = "CUDA_VISIBLE_DEVICES"
MIB = 1 << 20


class Gpu(BaseModel):
    """One GPU."""

    name: str
    memory_bytes: int
    driver: str


def gpus() -> list[Gpu]:
    """List the GPUs of this machine; none where the environment hides all of them."""
    if os.environ.get(VISIBLE) in ("", "-1"):
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[Gpu]:
    """Parse a line of comma-separated ``FIELDS`` per GPU; memory is in MiB."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [
        # Some GPUs share the memory of the machine and have no number of their own.
        Gpu(name=name, memory_bytes=int(mib) * MIB if mib.isdecimal() else 0, driver=driver)
        for name, mib, driver in (row for row in rows if len(row) == len(FIELDS))
    ]
