"""Settings of ``examples/gpu_check.py``: those of one engine do not reach the next."""

import importlib
from pathlib import Path

import pytest

EXAMPLES = str(Path(__file__).parents[2] / "examples")


@pytest.fixture
def machines(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("gpu.machine")


@pytest.fixture
def machine(machines, tmp_path):
    return machines.Machine(
        device="cuda",
        quick=False,
        folder=tmp_path,
        logs=tmp_path,
        timeout=1,
        memory_bytes=80 << 30,
        jobs=1,
        start="graphs",
        engine_arguments={},
        begin=0,
    )


def test_the_attention_of_one_model_does_not_reach_the_next(machines, machine):
    settings = machine.quick_start
    settings |= machines.attention("512+64@vllm")
    assert settings["hf_overrides"] == {"mha2mla_attention": "vllm"}
    assert "hf_overrides" not in machine.quick_start
    assert machines.attention("192+64") == {}


def test_a_check_that_fails_leaves_its_error_and_the_others_go_on(machine, capsys):
    def check(name):
        if name == "bad":
            raise ValueError("no")
        return {"ok": True, "figure": 0.5}

    found = machine.each(["bad", "good"], check, at_once=2)
    assert list(found) == ["bad", "good"]
    assert found["bad"]["ok"] is False
    assert found["bad"]["failed"] == "ValueError: no"
    assert found["good"]["figure"] == 0.5
    assert "bad: ValueError: no" in capsys.readouterr().out


def test_a_small_gpu_gets_fewer_layers(machine):
    assert machine.large["num_hidden_layers"] == 32
    machine.memory_bytes = 16 << 30
    assert machine.large["num_hidden_layers"] == 8
    assert "8 layers" in machine.large_name
