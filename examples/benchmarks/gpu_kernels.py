"""Check and time the GPU kernels of latent attention beside FlashAttention on the original's cache.

    python examples/benchmarks/gpu_kernels.py --json kernels.json
    python examples/benchmarks/gpu_kernels.py --coded --json coded.json
    python examples/benchmarks/gpu_kernels.py --sweep

Times are in microseconds of one layer: decode for several contexts and batches, prefill of one
request, and the kernels around attention. A time is of one call within a CUDA graph of calls that
each read another cache, half a gigabyte in all, so that the GPU's own cache does not flatter; the
median of several replays counts. Beside it stand the bytes of cache that the layer has to read,
over the time, and their share of the bandwidth of a copy on the same GPU. Every kernel is also
compared with ``kernels/reference.py`` in float32. A variant that fails prints why, and the rest
goes on. ``--coded`` checks and times coded rows alone, beside plain rows of the same width;
``--sweep`` times sizes of the own kernel's tiles instead.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu_kernels_parts.checks import check_kernels
from gpu_kernels_parts.coded import check_coded, time_coded
from gpu_kernels_parts.compiling import compile_all
from gpu_kernels_parts.report import Report
from gpu_kernels_parts.sweep import sweep
from gpu_kernels_parts.timings import time_decode, time_prefill, time_products, time_rotation


def main() -> None:
    """Check, time, write the report; again in a new process where the GPU was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--sweep", action="store_true", help="time sizes of tiles instead")
    parser.add_argument("--coded", action="store_true", help="coded rows alone")
    parser.add_argument("--seconds", type=float, default=240, help="limit of a sweep")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # for the process that works
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device was found: this benchmark runs on an NVIDIA GPU")
    if arguments.rows:
        torch.manual_seed(0)
        report = Report(arguments.rows)
        if arguments.sweep:
            sweep(report, arguments.seconds)
            return
        for part in (check_coded, time_coded):
            part(report)
        if not arguments.coded:
            for part in (time_decode, check_kernels, time_prefill, time_rotation, time_products):
                part(report)
        return
    started = time.monotonic()
    compile_all(arguments.sweep, arguments.coded)
    print(f"kernels compiled in {time.monotonic() - started:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        command = [sys.executable, *sys.argv, "--rows", str(rows)]
        while (status := subprocess.run(command, check=False).returncode) == Report.LOST:
            pass
        print(f"{time.monotonic() - started:.0f} s", flush=True)
        if arguments.json and rows.exists():
            head, *results = (json.loads(line) for line in rows.read_text("utf-8").splitlines())
            text = json.dumps(head | {"rows": results}, indent=1)
            arguments.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(status)


if __name__ == "__main__":
    main()
