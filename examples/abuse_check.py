"""Abuse a served checkpoint through its API and judge every answer: make abuse

vLLM serves the folder with a cache that holds one long request, so that requests preempt each
other. Storms of requests, many of them cancelled or wrong, alternate with quiet, in which the idle
server scores each token that it gave under load. It ends with a table and exit code 1 if any check
failed; docs/serving.md says what is checked.
"""

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from abuse.material import BLOCK
from abuse.noise import COARSE_LIMIT, FLOAT32_FLOOR
from abuse.plan import KINDS
from abuse.report import as_json, passed, table
from abuse.rounds import abuse
from abuse.run import Options
from abuse.watch import Server
from endings import FAILED, one_line
from rich.console import Console

from conversion.bench.metrics import memory_bytes
from conversion.bench.server import serve
from conversion.text.documents import builtin_text

# vLLM refuses a cache that does not hold one longest request in these bytes, and then takes as few
# of their blocks as it is told.
CACHE_BYTES = 1 << 30

console = Console(width=None if sys.stdout.isatty() else 120)


def main() -> None:
    """Parse the command line and end with one line whatever goes wrong."""
    arguments = _arguments()
    with one_line():
        sys.exit(0 if check(arguments) else FAILED)


def check(arguments: argparse.Namespace) -> bool:
    """Serve a folder, abuse it, show and write the verdict, and return it."""
    options = Options(
        seed=arguments.seed,
        minutes=arguments.minutes,
        clients=arguments.clients,
        round_seconds=min(arguments.round_seconds, arguments.minutes * 60 / 2),
        noise_limit=noise_limit(arguments.folder, arguments.dtype),
        kinds=tuple(filter(None, arguments.kinds.split(","))),
    )
    log = arguments.log or Path(tempfile.gettempdir()) / "mha2mla-abuse.log"
    command = server_options(arguments)
    console.print(f"vllm serve {arguments.folder} {shlex.join(command)}", soft_wrap=True)
    console.print(f"its log: {log}; seed {arguments.seed}", soft_wrap=True)
    with serve(arguments.folder, log, *command, timeout=arguments.start_timeout) as served:
        watched = Server(served.url, log, lambda: memory_bytes(served), served.check)
        found = asyncio.run(abuse(watched, builtin_text("held-out"), options, _say))
    console.print(table(found))
    for finding in found.ledger.findings[:5]:
        shown = f"request {finding['number']}, {finding['kind']}: {finding['fault']}"
        console.print(shown, markup=False, style="red", soft_wrap=True)
    settings: dict[str, Any] = {"folder": str(arguments.folder), "serve": command}
    arguments.json.write_text(json.dumps(as_json(found, options, settings), indent=1), "utf-8")
    console.print(f"all of it, with every finding's request: {arguments.json}", soft_wrap=True)
    return passed(found)


def noise_limit(folder: Path, dtype: str) -> float:
    """The most that a quiet server of this checkpoint may differ from itself."""
    config = folder / "config.json"
    coded = config.is_file() and json.loads(config.read_text("utf-8")).get("row_bits_per_layer")
    return FLOAT32_FLOOR if dtype == "float32" and not coded else COARSE_LIMIT


def server_options(arguments: argparse.Namespace) -> list[str]:
    """List the options of ``vllm serve``: a cache with one block more than a longest request."""
    blocks = -(-arguments.max_model_len // BLOCK) + 1 + arguments.spare_blocks
    return [
        *("--dtype", arguments.dtype, "--max-model-len", str(arguments.max_model_len)),
        *("--kv-cache-memory-bytes", str(CACHE_BYTES), "--block-size", str(BLOCK)),
        *("--num-gpu-blocks-override", str(blocks)),
        # Prompts in several chunks, which share their steps with answers.
        *("--max-num-batched-tokens", "512", "--generation-config", "vllm"),
        *("--disable-uvicorn-access-log", *shlex.split(arguments.args)),
    ]


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=Path(".demo/converted"), help="of the checkpoint")
    add("--minutes", type=float, default=30.0, help="of load; the quiet between comes on top")
    add("--round-seconds", type=float, default=60.0, help="of load before each judgement")
    add("--seed", type=int, default=0, help="of all requests")
    add("--kinds", default="", metavar="A,B", help=f"some of {','.join(KINDS)}; default all")
    add("--clients", type=int, default=16, help="requests at once")
    add("--dtype", default="float32", help="float32, the default, tells noise from faults best")
    add("--max-model-len", type=int, default=2048, help="tokens of the longest request")
    add("--spare-blocks", type=int, default=0, help="blocks of cache beyond one longest request")
    add("--args", default="", help="further options for vllm serve")
    add("--start-timeout", type=float, default=900.0, help="seconds")
    add("--json", type=Path, default=Path("abuse.json"), metavar="FILE")
    add("--log", type=Path, metavar="FILE", help="the server's output")
    return parser.parse_args()


if __name__ == "__main__":
    main()
