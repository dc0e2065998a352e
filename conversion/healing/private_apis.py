"""The private interfaces of transformers and PyTorch that healing relies on, and why.

A release that renames one of them breaks this file and nothing else.
"""

from typing import Any

from transformers import Trainer, TrainingArguments


def use_one_device(arguments: TrainingArguments) -> None:
    """Make this process train on one device; several devices are several processes.

    ``arguments._n_gpu``: with more than one visible GPU, Trainer would wrap the model in
    ``DataParallel``, and no public argument turns that off.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


def set_learning_rate(optimizer: Any, lr_scheduler: Any, rate: float) -> None:
    """Rescale a running schedule to another peak learning rate.

    ``schedule._last_lr``: the rate that Trainer logs. The schedule refreshes it only at its next
    step, so the first point of the curve would show the old rate.
    """
    schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
    for index, base in enumerate(schedule.base_lrs):
        group = optimizer.param_groups[index]
        group["lr"] *= rate / base
        group["initial_lr"] = schedule.base_lrs[index] = rate
        schedule._last_lr[index] = group["lr"]


class CompleteCheckpoints(Trainer):
    """A Trainer whose checkpoints are complete once ``trainer_state.json`` is there.

    ``_save_rng_state``: the last file that every process writes, just before the first process
    writes ``trainer_state.json``. Without the barrier a killed run could leave a checkpoint that
    looks complete and lacks another process's file.
    """

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
