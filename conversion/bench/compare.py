"""The story of ``mha2mla bench``: from checkpoint, source and settings to figures."""

import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conversion.bench.gpus import gpus
from conversion.bench.loads import check_cache, make_loads, max_model_len
from conversion.bench.machine import machine
from conversion.bench.results import BenchResults, Point, Settings, combine
from conversion.bench.sides import CONVERTED, ORIGINAL, Plan, Side, run
from conversion.checkpoint.export import export
from conversion.checkpoint.loading import read_converted_config
from conversion.errors import ServerError, UsageError
from conversion.runtime.dtypes import dtype_named
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint, open_source

# Four readings of /metrics a second would push an error out of the end of the log.
QUIET = "--disable-uvicorn-access-log"

# vLLM 0.32 starts with others on a CPU too, but its kernels then write beyond the cache's bytes.
CPU_CACHES = ("fp8", "fp8_e4m3", "fp8_e5m2")

# With the size of the cache given, vLLM only checks that this share of a GPU is free. Its default
# would refuse a GPU that anything else uses, the other server included.
SHARED_GPU = ("--gpu-memory-utilization", "0.1")


@dataclass(frozen=True)
class Request:
    """A request to compare: the options of ``mha2mla bench``, by their names."""

    checkpoint: Path
    baseline: str
    kv_memory: int
    input_len: list[int]
    output_len: int
    max_concurrency: list[int]
    num_prompts: int | None
    rounds: int
    dtype: str
    one_at_a_time: bool | None
    args: str
    original_args: str
    converted_args: str
    start_timeout: float
    kv_cache_dtypes: tuple[str, ...] = ()


def bench(request: Request, progress: Progress) -> BenchResults:
    """Serve all models, put the loads on each, and compare.

    Args:
        request: models, loads and settings.
        progress: shows starts and rounds.

    Raises:
        UsageError, MissingExtraError, CheckpointError, SourceError: with the way out.
        ServerError: a server or the benchmark failed; its logs are kept.
    """
    both, original, converted = (
        _words(name, text)
        for name, text in (
            ("--args", request.args),
            ("--original-args", request.original_args),
            ("--converted-args", request.converted_args),
        )
    )
    on_gpu = bool(gpus())
    if not on_gpu:
        _check_cpu_caches(request.kv_cache_dtypes)
    config = read_converted_config(request.checkpoint)
    source = open_source(request.baseline)
    loads = make_loads(
        request.input_len, request.output_len, request.max_concurrency, request.num_prompts
    )
    limit = min(config.max_position_embeddings, source.config.max_position_embeddings)
    context = max_model_len(loads, limit)
    # Further options may change the size of a token's cache; then the check is left to vLLM.
    if not both and not original:
        check_cache(request.kv_memory, context, source.config, dtype_named(request.dtype).itemsize)
    one_at_a_time = on_gpu if request.one_at_a_time is None else request.one_at_a_time
    common = (
        "--dtype", request.dtype, "--kv-cache-memory-bytes", str(request.kv_memory),
        "--max-model-len", str(context), QUIET, *(SHARED_GPU if on_gpu else ()), *both,
    )  # fmt: skip
    with _scratch() as scratch:
        folder = _folder(source, scratch, progress)
        plan = Plan(
            original=Side(ORIGINAL, folder, (*common, *original)),
            converted=Side(CONVERTED, request.checkpoint.resolve(), (*common, *converted)),
            loads=loads,
            rounds=request.rounds,
            one_at_a_time=one_at_a_time,
            start_timeout=request.start_timeout,
            scratch=scratch,
            rivals=tuple(
                Side(
                    f"{ORIGINAL}-{name}",
                    folder,
                    (*common, *original, "--kv-cache-dtype", name),
                    kv_cache_dtype=name,
                )
                for name in request.kv_cache_dtypes
            ),
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
            checkpoint=str(request.checkpoint),
            baseline=request.baseline,
            dtype=request.dtype,
            kv_memory_bytes=request.kv_memory,
            max_model_len=context,
            input_len=request.input_len,
            output_len=request.output_len,
            max_concurrency=request.max_concurrency,
            rounds=request.rounds,
            one_at_a_time=one_at_a_time,
            original_args=[*both, *original],
            converted_args=[*both, *converted],
            baseline_kv_cache_dtypes=list(request.kv_cache_dtypes),
        ),
        machine=machine(),
        sweep=points,
    )


def _check_cpu_caches(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in CPU_CACHES:
            raise UsageError(
                f"--baseline-kv-cache-dtype {name}: vLLM on a CPU has {', '.join(CPU_CACHES)} "
                "only; measure it on a GPU, or its loss alone with mha2mla eval"
            )


def _words(option: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{option} {text}: cannot be split into words ({error})") from error


def _folder(source: SourceCheckpoint, scratch: Path, progress: Progress) -> Path:
    """Return the source as a folder that vLLM reads, exported if it is none."""
    path = Path(source.name).expanduser()
    if path.is_dir():
        return path.resolve()
    exported = scratch / "source"
    export(source, exported, None, overwrite=False, progress=progress)
    return exported


@contextmanager
def _scratch() -> Iterator[Path]:
    """Make a folder for models and logs. After a failure of vLLM the logs stay."""
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
