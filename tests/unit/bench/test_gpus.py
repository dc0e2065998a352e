"""The machine's GPUs, as nvidia-smi prints them, and servers one at a time on them."""

import stat
import sys
from dataclasses import replace

import pytest

pytest.importorskip("prometheus_client")

from conversion.bench import compare
from conversion.bench.gpus import Gpu, gpus, parse_gpus
from conversion.runtime.progress import Progress
from tests.support.tiny import save_tiny
from tests.support.tiny_converted import save_tiny_converted

TWO = "NVIDIA H100 80GB HBM3, 81559, 570.86.10\nNVIDIA GB10, [N/A], 580.65.06\n"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """An ``nvidia-smi`` that prints two GPUs for the query of ours, and fails for any other."""
    command = tmp_path / "nvidia-smi"
    query = "--query-gpu=name,memory.total,driver_version"
    command.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"ok = sys.argv[1:] == [{query!r}, '--format=csv,noheader,nounits']\n"
        f"print({TWO!r}, end='') if ok else sys.exit(1)\n"
    )
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("nvidia_smi")
def test_gpus_are_named_with_memory_and_driver():
    first, second = gpus()
    assert first == Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 << 20, driver="570.86.10")
    assert second.memory_bytes == 0


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_do_not_count(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert gpus() == []


def test_a_machine_without_the_command_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == []


def test_what_is_no_table_has_no_gpus():
    assert parse_gpus("No devices were found\n") == []


class Planned(Exception):  # noqa: N818, not an error
    """The plan of a measurement, in place of the measurement."""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """The plan that ``bench`` makes; servers on a GPU cannot run here."""

    def run(plan, progress):
        raise Planned(plan)

    monkeypatch.setattr(compare, "run", run)
    request = compare.Request(
        checkpoint=save_tiny_converted(tmp_path / "converted"),
        baseline=str(save_tiny(tmp_path / "source")),
        kv_memory=1 << 26,
        input_len=[32],
        output_len=16,
        max_concurrency=[2],
        num_prompts=None,
        rounds=1,
        dtype="bfloat16",
        one_at_a_time=None,
        args="",
        original_args="",
        converted_args="",
        start_timeout=60,
    )

    def make(**changes):
        with pytest.raises(Planned) as planned:
            compare.bench(replace(request, **changes), Progress())
        return planned.value.args[0]

    return make


@pytest.mark.usefixtures("nvidia_smi")
def test_a_gpu_holds_one_server_at_a_time_unless_told_otherwise(planned):
    assert planned().one_at_a_time
    both = planned(one_at_a_time=False)
    assert not both.one_at_a_time
    # Else the second server would find less memory free than vLLM asks for.
    options = both.original.options
    assert float(options[options.index("--gpu-memory-utilization") + 1]) <= 0.2


def test_cpus_hold_both(planned, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = planned()
    assert not plan.one_at_a_time
    assert "--gpu-memory-utilization" not in plan.original.options
