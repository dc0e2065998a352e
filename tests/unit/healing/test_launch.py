"""Launches that healing refuses before it reads anything, and what it takes the others for."""

import pytest
import torch
from accelerate.utils import DistributedType

from conversion.errors import UsageError
from conversion.healing.launch import (
    check_distributed_type,
    check_launch,
    is_sharded,
    local_world_size,
    training_device,
    world_size,
)

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}


@pytest.fixture
def launched(monkeypatch):
    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "DeepSpeed is not supported; launch with --use_fsdp",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        (FSDP | {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "tensor, context and hybrid"),
        (FSDP | {"FSDP_VERSION": "1"}, "FSDP 1 is not supported; add --fsdp_version 2"),
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, "FSDP 1 is not supported"),
        (FSDP | {"WORLD_SIZE": "1"}, "this is one; add --num_processes"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "True"}, "gradient_checkpointing in the recipe"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "the whole model on each device"),
    ],
)
def test_refusals(launched, variables, message):
    launched(variables)
    with pytest.raises(UsageError, match="accelerate launch: ") as refused:
        check_launch()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_runs(launched):
    check_launch()
    assert not is_sharded()
    assert world_size() == local_world_size() == 1
    launched(FSDP | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    check_launch()
    assert is_sharded()
    assert (world_size(), local_world_size()) == (4, 2)


def test_accelerate_has_to_shard_where_it_is_asked_to(launched):
    check_distributed_type(DistributedType.MULTI_CPU)
    launched(FSDP)
    check_distributed_type(DistributedType.MULTI_GPU)
    with pytest.raises(UsageError, match="FSDP needs GPUs"):
        check_distributed_type(DistributedType.MULTI_CPU)


def test_trains_on_the_device_that_is_asked_for(monkeypatch):
    assert training_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device(None) == "cuda"
    assert training_device("cpu") == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert training_device(None) == "cpu"


@pytest.mark.parametrize("name", ["cuda:1", "toaster"])
def test_one_of_several_gpus_is_chosen_elsewhere(name):
    with pytest.raises(UsageError, match=f"--device {name}: .*CUDA_VISIBLE_DEVICES"):
        training_device(name)
