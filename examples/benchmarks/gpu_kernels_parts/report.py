"""Times of calls, and the rows of results."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor


def graph_time(calls: list[Callable[[], Any]], budget: float = 0.04) -> float:
    """Microseconds of one call, in a CUDA graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    graph.replay()
    while len(times) < 3 or (sum(times) < budget * 1e3 and len(times) < 50):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    del graph
    return sorted(times)[len(times) // 2] * 1e3 / len(calls)


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy of 2 GiB, the faster of two ways to time it."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    milliseconds: float = triton.testing.do_bench(copy, warmup=20, rep=100, return_mode="median")
    return 2 * source.numel() / min(graph_time([copy]) / 1e6, milliseconds / 1e3)


class Report:
    """Rows of results, errors among them: printed at once, and kept in a file of one JSON a line.

    An illegal memory access leaves a process without its GPU. The process then ends with the exit
    status ``LOST``, and another one goes on with what the file does not have yet.
    """

    LOST = 75

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if not self.rows:
            self.keep(
                {
                    "device": torch.cuda.get_device_name(),
                    "torch": torch.__version__,
                    "copy_bandwidth": copy_bandwidth(),
                    "started": time.time(),
                }
            )
        head = self.rows[0]
        self.copy_bandwidth, self.started = head["copy_bandwidth"], head["started"]
        if len(self.rows) == 1:
            bandwidth = self.copy_bandwidth / 1e12
            print(f"{head['device']}: a copy moves {bandwidth:.2f} TB/s", flush=True)

    def keep(self, row: dict[str, Any]) -> None:
        """Add a row to the file."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def add(self, measure: Callable[[], dict[str, Any]], **labels: Any) -> dict[str, Any] | None:
        """Measure, print and keep one row, unless it is there already; None if it failed."""
        labels = {name: str(value) for name, value in labels.items()}
        for row in self.rows:
            if labels.items() <= row.items():
                return None if "error" in row else row
        words = " ".join(labels.values())
        try:
            result = measure()
        except Exception as error:  # one variant's failure is a result like another
            lines = str(error).strip().splitlines() or [""]
            self.keep(labels | {"error": f"{type(error).__name__}: {lines[0]}"})
            print(f"{words:72} FAILED {type(error).__name__}: {lines[0][:150]}", flush=True)
            self.end_without_gpu()
            return None
        self.keep(labels | result)
        values = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in result.items()
        )
        print(f"{words:72} {values}", flush=True)
        return result

    def end_without_gpu(self) -> None:
        """End this process if an error has left it without its GPU."""
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").item()
        except Exception:  # whatever it is, nothing works from here on
            os._exit(self.LOST)

    def timing(
        self, calls: Callable[[], list[Callable[[], Any]]], read: int = 0, beside: float = 0.0
    ) -> dict[str, Any]:
        """Time calls; ``read`` bytes of cache each, beside the original's microseconds."""
        microseconds = graph_time(calls())
        result: dict[str, Any] = {"us": microseconds}
        if read:
            bandwidth = read / microseconds * 1e6
            result["TB/s"] = bandwidth / 1e12
            result["of_copy"] = bandwidth / self.copy_bandwidth
        if beside:
            result["times_original"] = beside / microseconds
        return result
