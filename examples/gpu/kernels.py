"""The speed of the kernels, by ``benchmarks/gpu_kernels.py``."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu.machine import Machine
from gpu.processes import ProcessError, end_group

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_kernels.py"


def kernels(machine: Machine) -> dict[str, Any]:
    """Check and time a layer's attention for every width; nothing without a GPU."""
    if not machine.on_gpu:
        return {}
    return machine.each(["kernels"], lambda name: _run(machine, name))


def _run(machine: Machine, name: str) -> dict[str, Any]:
    log, result = machine.log(name), machine.logs / "kernels.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(SCRIPT), "--json", str(result)]
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as benchmark,
    ):
        try:
            code = benchmark.wait(machine.timeout)
        finally:
            end_group(benchmark.pid)
    if not result.is_file():
        raise ProcessError(f"exit code {code}; see {log}")
    found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    found["ok"] = not any(failed(row) for row in found["rows"])
    return found


def failed(row: dict[str, Any]) -> bool:
    """Tell if a row of the benchmark is an exception, or an error beyond its bound."""
    return isinstance(row.get("error"), str) or row.get("ok") is False
