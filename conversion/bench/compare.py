"""From checkpoint, source and settings to figures."""

import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conversion.bench.loads import check_cache, max_model_len, sweep
from conversion.bench.machine import machine
from conversion.bench.results import BenchResults, Point, Settings, combine
from conversion.bench.sides import CONVERTED, ORIGINAL, Plan, Side, run
from conversion.checkpoint.export import export
from conversion.checkpoint.loading import read_converted_config
from conversion.errors import BenchError, ServerError
from conversion.runtime.dtypes import dtype_named
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint, open_source

# The log's end is for what went wrong, not for four readings of /metrics a second.
QUIET = "--disable-uvicorn-access-log"


@dataclass(frozen=True)
class Request:
    """What to compare, and how; the options of ``mha2mla bench`` by their names."""

    checkpoint: Path
    baseline: str
    kv_memory: int
    input_len: list[int]
    output_len: int
    max_concurrency: list[int]
    num_prompts: int | None
    rounds: int
    dtype: str
    one_at_a_time: bool
    args: str
    original_args: str
    converted_args: str
    start_timeout: float


def bench(asked: Request, progress: Progress) -> BenchResults:
    """Serve both, drive both, compare.

    Raises:
        BenchError, CheckpointError, SourceError: with the way out.
        ServerError: vLLM did not do its part; its logs are kept.
    """
    both, original, converted = (
        _words(name, text)
        for name, text in (
            ("--args", asked.args),
            ("--original-args", asked.original_args),
            ("--converted-args", asked.converted_args),
        )
    )
    config = read_converted_config(asked.checkpoint)
    source = open_source(asked.baseline)
    loads = sweep(asked.input_len, asked.output_len, asked.max_concurrency, asked.num_prompts)
    limit = min(config.max_position_embeddings, source.config.max_position_embeddings)
    context = max_model_len(loads, limit)
    # Further options may change what a token takes; vLLM itself then says what is too small.
    if not both and not original:
        check_cache(asked.kv_memory, context, source.config, dtype_named(asked.dtype).itemsize)
    common = (
        "--dtype", asked.dtype, "--kv-cache-memory-bytes", str(asked.kv_memory),
        "--max-model-len", str(context), QUIET, *both,
    )  # fmt: skip
    with _scratch() as scratch:
        plan = Plan(
            original=Side(ORIGINAL, _folder(source, scratch, progress), (*common, *original)),
            converted=Side(CONVERTED, asked.checkpoint.resolve(), (*common, *converted)),
            loads=loads,
            rounds=asked.rounds,
            one_at_a_time=asked.one_at_a_time,
            start_timeout=asked.start_timeout,
            scratch=scratch,
        )
        measured = run(plan, progress)
    points = [
        Point(
            input_len=load.input_len,
            output_len=load.output_len,
            max_concurrency=load.max_concurrency,
            num_prompts=load.num_prompts,
            **dict(combine(rounds)),
        )
        for load, rounds in zip(loads, measured, strict=True)
    ]
    first = combine(measured[0])
    return BenchResults(
        **dict(first),
        settings=Settings(
            checkpoint=str(asked.checkpoint),
            baseline=asked.baseline,
            dtype=asked.dtype,
            kv_memory_bytes=asked.kv_memory,
            max_model_len=context,
            input_len=asked.input_len,
            output_len=asked.output_len,
            max_concurrency=asked.max_concurrency,
            rounds=asked.rounds,
            one_at_a_time=asked.one_at_a_time,
            original_args=[*both, *original],
            converted_args=[*both, *converted],
        ),
        machine=machine(),
        sweep=points,
    )


def _words(option: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BenchError(f"{option} {text}: cannot be split into words ({error})") from error


def _folder(source: SourceCheckpoint, scratch: Path, progress: Progress) -> Path:
    """The source as a folder that vLLM reads."""
    path = Path(source.name).expanduser()
    if path.is_dir():
        return path.resolve()
    exported = scratch / "source"
    export(source, exported, None, overwrite=False, progress=progress)
    return exported


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for models and logs; after a failure of vLLM's the logs stay."""
    folder = Path(tempfile.mkdtemp(prefix="mha2mla-bench-"))
    try:
        yield folder
    except ServerError:
        shutil.rmtree(folder / "source", ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
