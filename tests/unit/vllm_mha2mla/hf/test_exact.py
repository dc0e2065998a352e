"""Frequencies and the other constants, whatever is done to a converted model in transformers."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tests.support.tiny_converted import save_tiny_coded
from vllm_mha2mla.config import CONSTANTS
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.hf.llama import LlamaMLAForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_coded(tmp_path_factory.mktemp("coded"))


@pytest.fixture(scope="module")
def stored(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def constants(tensors):
    return {name: x for name, x in tensors.items() if name.endswith(CONSTANTS)}


def assert_exact(found, stored):
    found, stored = constants(found), constants(stored)
    assert found.keys() == stored.keys()
    assert len(stored) == 3 * 4
    for name, x in found.items():
        assert x.dtype == torch.float32, name
        assert torch.equal(x, stored[name]), name


def rounded(tensors, dtype=torch.bfloat16):
    return {n: x.to(dtype) if n.endswith(CONSTANTS) else x for n, x in tensors.items()}


CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "type": lambda model: model.type(torch.float16),
    "one layer": lambda model: model.model.layers[0].to(torch.float16),
    "there and back": lambda model: model.half().float(),
    "to empty and back": lambda model: model.to(torch.bfloat16).to("cpu", torch.float32),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_pass_them_by(model, stored, cast, tmp_path):
    CASTS[cast](model)
    assert_exact(model.state_dict(), stored)
    model.save_pretrained(tmp_path)
    assert_exact(load_file(tmp_path / "model.safetensors"), stored)


LOADS = {
    "float32": lambda f: AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32),
    "float16": lambda f: AutoModelForCausalLM.from_pretrained(f, dtype=torch.float16),
    "auto": lambda f: AutoModelForCausalLM.from_pretrained(f, dtype="auto"),
    "trusted": lambda f: AutoModelForCausalLM.from_pretrained(f, trust_remote_code=True),
    "device map": lambda f: AutoModelForCausalLM.from_pretrained(f, device_map="cpu"),
    "own class": LlamaMLAForCausalLM.from_pretrained,
}


@pytest.mark.parametrize("load", LOADS)
def test_loading_keeps_them_and_lets_nothing_train_them(folder, stored, load):
    model = LOADS[load](folder).requires_grad_(True)
    assert not constants(dict(model.named_parameters()))
    assert not any(x.requires_grad for x in model.buffers())
    assert_exact(model.state_dict(), stored)


def test_trainer_leaves_them(model, stored, tmp_path):
    data = [{"input_ids": x, "labels": x} for x in torch.randint(0, 256, (8, 16))]
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", bf16=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert_exact(saved, stored)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert not torch.equal(saved[name], stored[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", ["1GB", "60KB"])
def test_a_rounded_file_is_refused(model, folder, tmp_path, dtype, shards):
    model.save_pretrained(tmp_path, max_shard_size=shards)
    for file in tmp_path.glob("*.safetensors"):
        save_file(rounded(load_file(file), dtype), file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"self_attn\.\w+ is stored in B?F16: rounded"):
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)


def test_rounded_tensors_are_refused(model, stored, tmp_path):
    for assign in (False, True):
        with pytest.raises(CheckpointError, match="is stored in bfloat16"):
            model.load_state_dict(rounded(stored), assign=assign)
    with pytest.raises(CheckpointError, match="is stored in bfloat16"):
        LlamaMLAForCausalLM.from_pretrained(None, config=model.config, state_dict=rounded(stored))
    with pytest.raises(CheckpointError, match="is stored in bfloat16"):
        model.save_pretrained(tmp_path, state_dict=rounded(stored))
    assert_exact(model.state_dict(), stored)


def test_a_pickled_rounded_file_is_refused(model, folder, stored, tmp_path):
    model.config.save_pretrained(tmp_path)
    torch.save(rounded(stored), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is stored in bfloat16"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_cast_behind_its_back_the_model_neither_computes_nor_saves(model):
    for buffer in model.buffers():
        buffer.data = buffer.data.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match="was cast to bfloat16"):
        model(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(CheckpointError, match="was cast to bfloat16"):
        model.state_dict()


def test_a_file_without_them_is_refused(model, stored, tmp_path):
    model.save_pretrained(tmp_path)
    fewer = {n: x for n, x in stored.items() if not n.endswith("layers.1.self_attn.rope_inv_freq")}
    save_file(fewer, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"layers\.1\S+rope_inv_freq is not in the checkpoint"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_offloaded_by_accelerate_it_computes_the_same(folder, model, tmp_path):
    ids = torch.arange(12)[None]
    devices = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    devices |= {f"model.layers.{i}": ("disk", "cpu")[i % 2] for i in range(4)} | {"lm_head": "cpu"}
    away = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map=devices, offload_folder=tmp_path
    )
    assert away.model.layers[0].self_attn.kv_b_proj.weight.is_meta
    with torch.no_grad():
        torch.testing.assert_close(away(ids).logits, model(ids).logits)


def test_a_hook_on_a_projection_that_is_only_read_is_called(model):
    up: nn.Module = model.model.layers[0].self_attn.kv_b_proj
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids).logits
        handle = up.register_forward_hook(lambda _module, _inputs, output: 2 * output)
        doubled = model(ids).logits
        handle.remove()
        up.weight.mul_(2)
        torch.testing.assert_close(doubled, model(ids).logits)
    assert not torch.equal(doubled, expected)


def test_sharded_with_mixed_precision_they_are_float32(model, stored):
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        seen = []
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        for layer in model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        first = model.model.layers[0].self_attn
        first.register_forward_hook(lambda module, *_: seen.append(module.constants()))
        model(torch.arange(12)[None]).logits.sum().backward()
        assert {x.dtype for x in seen[0].values()} == {torch.float32}
        assert_exact(model.state_dict(), stored)
    finally:
        destroy_process_group()
