"""Check this package on a GPU, in one command, without a network: python examples/gpu_check.py

It prints versions, exactness against transformers, memory, and the speed of kernels and engine
beside the unconverted model's, all with random weights, and writes them as JSON to paste into an
issue. Give it a GPU that nothing else uses. Without one it tries itself out on tiny models.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu import exact, speed
from gpu.convert import conversions
from gpu.engine import inspect_models
from gpu.kernels import kernels
from gpu.machine import STARTS, Machine
from gpu.markdown import markdown, merged
from gpu.processes import ProcessError, end_with_this, isolated, start_with
from gpu.table import failures, table
from gpu.versions import versions

Part = Callable[[Machine, argparse.Namespace, dict[str, Any]], dict[str, Any]]
PARTS: dict[str, Part] = {
    "exact": lambda machine, options, _: exact.exact(machine, options.exact),
    "features": lambda machine, *_: exact.features(machine),
    "kernels": lambda machine, *_: kernels(machine),
    "engine": lambda machine, options, _: speed.engines(machine, options.models, options.loads),
    # The engines of the speeds have told it already.
    "memory": lambda machine, options, report: (
        report.get("engine") or speed.engines(machine, options.models, [])
    ),
    "convert": lambda machine, *_: conversions(machine),
}
VERSIONS = "versions"
WITH_ENGINES = {"exact", "features", "engine", "memory"}


def main() -> int:
    """Run the parts, print a table, write the report."""
    begin = time.monotonic()
    options = _options()
    if options.show:
        reports = [json.loads(file.read_text("utf-8")) for file in options.show]
        return _tell(merged(reports), and_markdown=True)
    options.logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as folder:
        end_with_this(Path(folder))
        found = _versions(options.logs)
        device = "cuda" if "gpu" in found else "cpu"
        machine = Machine(
            device=device,
            quick=options.quick,
            folder=Path(folder),
            logs=options.logs,
            timeout=options.timeout,
            memory_bytes=found.get("memory_bytes", 0),
            jobs=options.jobs,
            start=options.start,
            engine_arguments=options.engine_args,
            begin=begin,
        )
        machine.say(", ".join(f"{key} {value}" for key, value in found.items()))
        if options.loads is None:
            usual = speed.LOADS if not options.quick else speed.QUICK_LOADS
            options.loads = speed.parse_loads(usual if machine.on_gpu else speed.TINY_LOADS)
        if WITH_ENGINES.intersection(options.parts):
            _inspect(machine)
        report: dict[str, Any] = {VERSIONS: found}
        for name in options.parts:
            if name != VERSIONS:
                machine.say(f"--- {name}")
                try:
                    report[name] = PARTS[name](machine, options, report)
                except Exception as error:
                    report[name] = {name: {"ok": False, "failed": str(error)}}
                # After every part, because the machine may be taken away.
                _write(options.json, report)
    _write(options.json, report)
    return _tell(report, and_markdown=False)


def _tell(report: dict[str, Any], and_markdown: bool) -> int:
    print(table(report))
    if and_markdown:
        print(markdown(report))
    failed = failures(report)
    print(f"{len(failed)} checks failed: {', '.join(failed)}" if failed else "no check failed")
    return 1 if failed else 0


def _versions(logs: Path) -> dict[str, Any]:
    # Imported before the first fork, not by each process after it.
    importlib.import_module("gpu.engine")
    importlib.import_module("gpu.scores")
    found: dict[str, Any] = {}
    for method in ("fork", "spawn"):
        start_with(method)
        try:
            found = isolated(logs / "versions.log", 120, {}, versions)
            break
        except ProcessError as error:
            print(f"versions, by {method}: {error}", flush=True)
    return found


def _inspect(machine: Machine) -> None:
    try:
        isolated(machine.log("models"), machine.timeout, machine.environment, inspect_models)
        machine.say("vLLM has inspected the models")
    except ProcessError as error:
        # Each engine will do it for itself, or tell what is wrong.
        machine.say(f"inspecting the models: {error}")


def _write(file: Path | None, report: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"{text}: take some of {','.join(known)}")
        return names

    return parse


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = (VERSIONS, *PARTS)

    def several(option: str, known: tuple[str, ...], text: str) -> None:
        every = ",".join(known)
        parser.add_argument(
            option, type=_names(known), default=list(known), metavar="A,B", help=f"{text}: {every}"
        )

    several("--parts", parts, "parts to run, in this order")
    several("--exact", exact.NAMES, "models whose exactness is checked")
    several("--models", speed.NAMES, "models whose memory and speed are measured")
    parser.add_argument(
        "--loads",
        type=speed.parse_loads,
        metavar="LOADS",
        help=f"requests x prompt + answer @ GiB of cache at most; default {speed.LOADS}",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--logs", type=Path, default=Path("gpu_check_logs"), metavar="FOLDER")
    parser.add_argument("--folder", type=Path, help="for checkpoints, which need some 5 GB")
    parser.add_argument(
        "--start",
        choices=STARTS,
        default="graphs",
        help="engines start with full decode graphs only, as by default (slower), or eager",
    )
    parser.add_argument(
        "--engine-args", type=json.loads, default={}, metavar="JSON", help="for vLLM's LLM"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="engines side by side in the parts exact and features"
    )
    parser.add_argument(
        "--show",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="run nothing; show these reports of one machine, and as tables for docs/gpu.md",
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each process")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
