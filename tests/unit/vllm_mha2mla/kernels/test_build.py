"""Compiling the kernel, finding it again, and what happens where that cannot be."""

import logging
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.support import run_sanitized
from vllm_mha2mla import kernels
from vllm_mha2mla.errors import KernelBuildError
from vllm_mha2mla.kernels import build, cpu
from vllm_mha2mla.kernels.reference import ReferenceLayer

# A stand-in for the compiler: counts its calls in a file, and writes the file it is asked for.
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "{version}"; exit; fi
echo call >> {log}
{action}
for last; do :; done
echo compiled > "$last"
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a compiler that does something first, and names it in CXX."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))

    def make(action=":", version="1.0"):
        path = tmp_path / "c++"
        log = tmp_path / "calls"
        log.write_text("")
        path.write_text(COMPILER.format(version=version, log=log, action=action))
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        return lambda: len(log.read_text().split())

    return make


@pytest.fixture
def fresh_factory():
    kernels.layer_factory.cache_clear()
    yield kernels.layer_factory
    kernels.layer_factory.cache_clear()


def test_compiled_once_per_compiler_and_flags(compiler, tmp_path):
    calls = compiler()
    first = build.library()
    assert first.parent == tmp_path / "cache" / "mha2mla"
    assert calls() > 0
    before = calls()
    assert build.library() == first
    assert calls() == before
    assert build.library(("-DOTHER",)) != first
    compiler(version="2.0")
    assert build.library() != first


def test_processes_that_race_get_whole_files(compiler, tmp_path):
    compiler("sleep 0.1")
    with ThreadPoolExecutor(4) as pool:
        paths = {job.result() for job in [pool.submit(build.library) for _ in range(4)]}
    (path,) = paths
    assert path.read_text() == "compiled\n"
    assert list(path.parent.iterdir()) == [path]


def test_killed_midway_leaves_nothing_that_looks_finished(compiler, tmp_path):
    calls = compiler("sleep 60")
    code = "from vllm_mha2mla.kernels import build; build.library()"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not calls():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder = tmp_path / "cache" / "mha2mla"
    assert not list(folder.glob("*.so"))
    compiler()
    assert build.library().read_text() == "compiled\n"


def test_folder_that_cannot_be_written(compiler, tmp_path, monkeypatch):
    compiler()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file" / "below"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = build.library()
    assert path.parent == tmp_path / f"mha2mla-{os.getuid()}"
    # The library there is loaded: another user must not be able to put one there.
    path.parent.chmod(0o777)
    assert build.library().parent != path.parent


def test_without_a_place_for_the_kernel_pytorch_serves(
    compiler, tmp_path, monkeypatch, caplog, fresh_factory
):
    compiler()
    taken = tmp_path / "taken"
    taken.write_text("a file")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(taken))
    monkeypatch.setattr("tempfile.tempdir", str(taken))
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert fresh_factory() is ReferenceLayer
    (record,) = caplog.records
    assert "name a folder in VLLM_CACHE_ROOT" in record.getMessage()


def test_without_a_compiler_pytorch_serves(monkeypatch, caplog, fresh_factory):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    # vLLM's loggers do not propagate once it is configured.
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert fresh_factory() is ReferenceLayer
        assert fresh_factory() is ReferenceLayer
    (record,) = caplog.records
    assert "CXX=/nowhere/c++ is not there; name another compiler" in record.getMessage()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one build")
def test_compiler_that_does_not_know_an_instruction_set(compiler, caplog):
    real = build.compiler()
    refuse = 'case "$*" in *-mamx-int8*) echo "error: no such flag" >&2; exit 1;; esac'
    compiler(f'{refuse}; exec {real} "$@"')
    with caplog.at_level(logging.WARNING):
        library = build.library(("-O0",))
    assert "without amx" in caplog.text
    found = cpu.supported(library)
    assert "portable" in found
    assert "amx" not in found


def test_compiler_that_fails(compiler, fresh_factory):
    compiler('echo "x.cpp:1: error: unknown flag" >&2; exit 1')
    with pytest.raises(KernelBuildError, match="error: unknown flag"):
        build.library()
    assert fresh_factory() is ReferenceLayer


def test_library_that_does_not_load(compiler, fresh_factory):
    compiler()
    with pytest.raises(KernelBuildError, match="delete it"):
        cpu.CpuKernel(build.library())


def test_instruction_set_from_the_environment(monkeypatch, fresh_factory):
    monkeypatch.setenv(cpu.ISA_VARIABLE, "portable")
    assert fresh_factory().__self__.isa == "portable"
    with pytest.raises(KernelBuildError, match=r"VLLM_MHA2MLA_ISA=mmx: this CPU has .*portable"):
        cpu.CpuKernel(build.library(), "mmx")


def test_one_thread_pool_for_torch_and_the_kernel():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        torch.ones(1 << 20).exp_()  # torch's threads exist from here on
        running = os.listdir("/proc/self/task")
        kernel = cpu.CpuKernel(build.library())
        assert kernel.threads() == 3
        query, cache = torch.ones(64, 4, 32), torch.ones(64, 16, 32)
        table = torch.arange(64, dtype=torch.int32).view(4, 16)
        starts, lengths = torch.arange(5) * 16, torch.full((4,), 256)
        out = torch.empty(64, 4, 16)
        kernel.latent_attention(query, cache, table, starts, lengths, 1.0, out)
        torch.testing.assert_close(out, torch.ones_like(out))
        assert os.listdir("/proc/self/task") == running
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_address_sanitizer(tmp_path):
    compiler = build.compiler()
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(runtime).is_absolute(), f"{compiler} comes without AddressSanitizer's runtime"
    environment = os.environ | {
        "LD_PRELOAD": runtime,
        # Python and torch keep what they have until the end.
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=77",
        "VLLM_CACHE_ROOT": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", run_sanitized.__name__],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )
    # It found the error made on purpose at the end, and none before.
    assert done.stdout == "clean\n", done.stderr[-4000:]
    assert done.returncode == 77
    assert "heap-buffer-overflow" in done.stderr
    assert "pack_rows" in done.stderr
