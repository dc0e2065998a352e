"""Private interfaces of transformers and PyTorch: each still does what healing needs of it."""

import pytest
import torch
from transformers import TrainingArguments

from conversion.healing.models import set_attention
from conversion.healing.private_apis import CompleteCheckpoints, set_learning_rate, use_one_device
from conversion.runtime.dense_attention import NAME as DENSE_ATTENTION
from tests.support.tiny import tiny_llama


def arguments(folder, **changes):
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], **changes)


def test_several_visible_gpus_are_one_device(tmp_path):
    several = arguments(tmp_path)
    several._n_gpu = 4
    use_one_device(several)
    assert several.n_gpu == 1
    # Trainer wraps a model in DataParallel where this is more than the batch of one device.
    assert several.train_batch_size == several.per_device_train_batch_size


def test_another_rate_rescales_a_schedule_at_once_and_to_its_end():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    set_learning_rate(optimizer, schedule, 1e-4)
    # Powers of ten are rounded in float64.
    assert schedule.get_last_lr() == pytest.approx([0.6e-4], rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.6e-4, rel=1e-12)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.5e-4], rel=1e-12)


def test_all_wait_between_the_last_file_of_each_and_the_file_that_completes_a_checkpoint(tmp_path):
    trainer = CompleteCheckpoints(
        model=tiny_llama(),
        args=arguments(tmp_path, max_steps=1, save_steps=1, disable_tqdm=True),
        train_dataset=[{"input_ids": ids, "labels": ids} for ids in torch.arange(16)[None]],
    )
    wait, seen = trainer.accelerator.wait_for_everyone, []

    def record():
        seen.append(sorted(path.name for path in tmp_path.glob("checkpoint-1/*")))
        wait()

    trainer.accelerator.wait_for_everyone = record
    trainer.train()
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").exists()
    assert any("rng_state.pth" in files and "trainer_state.json" not in files for files in seen)


def test_attention_is_chosen_by_device():
    model = tiny_llama()
    for device, name in (("cpu", DENSE_ATTENTION), ("cuda", "sdpa"), ("cpu", DENSE_ATTENTION)):
        set_attention(model, device)
        assert model.model.layers[0].self_attn.config._attn_implementation == name
