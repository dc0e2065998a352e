"""Compiles the kernel when it is first needed, and finds it again.

One shared library holds a build of the same source for every instruction set, so what one machine
compiled runs on another; it lies under a hash of sources, flags and compiler. It is not linked to
an OpenMP runtime: the symbols come from the one torch has loaded (``csrc/dispatch.cpp``).
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vllm_mha2mla.errors import KernelBuildError

# vLLM shows the log lines of loggers below its own name.
logger = logging.getLogger("vllm.mha2mla")

SOURCES = Path(__file__).parent / "csrc"
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math"),
    # GCC 12 finds fault with its own AVX-512 headers.
    "-w",
)
AVX2 = ("-mavx2", "-mbmi2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
AVX512BF16 = (*AVX512, "-mavx512bf16", "-mavx512vbmi", "-mavx512vnni")
AMX = (*AVX512BF16, "-mamx-tile", "-mamx-int8")
WIDE = "-mprefer-vector-width=512"
X86_VARIANTS = {
    "avx2": AVX2,
    "avx512": (*AVX512, WIDE),
    "avx512bf16": (*AVX512BF16, WIDE),
    "amx": (*AMX, WIDE),
}
COMPILE_TIMEOUT = 900  # seconds; under sanitizers and beside other jobs it takes minutes


def library(extra_flags: Sequence[str] = ()) -> Path:
    """The compiled kernel, from the cache or compiled now.

    Safe to call from several processes at once and to interrupt: the file appears under its name
    only when it is whole.

    Raises:
        KernelBuildError: there is no compiler, or it fails, or no place for the result.
    """
    cxx = compiler()
    name = f"mha2mla-{_fingerprint(cxx, extra_flags)}.so"
    try:
        folder = _cache_folder()
        found = folder / name
        if found.is_file():
            return found
        logger.info("mha2mla: compiling the CPU kernel, once")
        # In the same file system, so that the rename is atomic.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as building:
            made = _compile(cxx, Path(building), extra_flags)
            made.replace(found)
    except OSError as error:
        raise KernelBuildError(
            f"the compiled kernel has no place ({error}); name a folder in VLLM_CACHE_ROOT"
        ) from error
    return found


def compiler() -> str:
    """The C++ compiler: ``CXX``, or the first of the usual ones.

    Raises:
        KernelBuildError: there is none.
    """
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["g++", "c++", "clang++"]:
        path = shutil.which(candidate)
        if path:
            return path
    raise KernelBuildError(
        f"CXX={named} is not there; name another compiler, or unset it"
        if named
        else "no C++ compiler (g++, c++, clang++); install one, or name one in CXX, and start again"
    )


def _fingerprint(compiler: str, extra_flags: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    version = _run([compiler, "--version"])
    digest.update(repr((compiler, version, _variants(), FLAGS, tuple(extra_flags))).encode())
    return digest.hexdigest()[:16]


def _variants() -> dict[str, tuple[str, ...]]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return {"portable": ()} | (X86_VARIANTS if x86 else {})


def _cache_folder() -> Path:
    """The cache folder of vLLM, or one of our user's in the system's folder for temporary files.

    The latter must be ours alone: what lies there is loaded as code.
    """
    xdg = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    root = os.environ.get("VLLM_CACHE_ROOT", f"{xdg}/vllm")
    wanted = Path(root).expanduser() / "mha2mla"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        if os.access(wanted, os.W_OK | os.X_OK):
            return wanted
    except OSError:
        pass
    own = Path(tempfile.gettempdir()) / f"mha2mla-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    status = own.lstat()
    if own.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="mha2mla-"))
    return own


def _compile(compiler: str, building: Path, extra_flags: Sequence[str]) -> Path:
    variants = {isa: flags for isa, flags in _variants().items() if _knows(compiler, isa, flags)}
    x86 = ["-DWITH_X86"] if len(variants) > 1 else []

    def compile_one(source: str, name: str, flags: Sequence[str]) -> Path:
        target = building / f"{name}.o"
        arguments = [*FLAGS, *flags, *extra_flags, "-c", str(SOURCES / source), "-o", str(target)]
        _run([compiler, *arguments])
        return target

    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(compile_one, "variant.cpp", isa, [f"-DISA={isa}", *flags])
            for isa, flags in variants.items()
        ]
        jobs.append(pool.submit(compile_one, "dispatch.cpp", "dispatch", x86))
        objects = [str(job.result()) for job in jobs]
    made = building / "kernel.so"
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    _run([compiler, "-shared", *undefined, *extra_flags, *objects, "-o", str(made)])
    return made


def _knows(compiler: str, isa: str, flags: Sequence[str]) -> bool:
    """Tell if a compiler has the flags of an instruction set: AMX takes GCC 11 or Clang 11."""
    try:
        _run([compiler, *flags, "-x", "c++", "-E", os.devnull, "-o", os.devnull])
    except KernelBuildError as error:
        logger.warning("mha2mla: the CPU kernel is compiled without %s: %s", isa, error)
        return False
    return True


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelBuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise KernelBuildError(
            f"{command[0]} failed: {lines[0].strip()}; if the compiler is to blame, "
            "name another in CXX"
        )
    return done.stdout
