"""The command ``mha2mla heal`` on tiny models, and what it leaves."""

import csv
import sys

from transformers import LlamaForCausalLM

from conversion.bench.server import free_port
from conversion.healing.callbacks import ShowProgress

WINDOW = 64


def arguments(models, out, *more, tokens=40 * WINDOW, text=None):
    return [
        "heal", str(models / "converted"), str(out), "--teacher", str(models / "source"),
        "--text", str(text or models / "text.txt"), "--tokens", str(tokens),
        "--window", str(WINDOW),
        "--lr", "2e-3", *map(str, more),
    ]  # fmt: skip


def losses(out):
    with (out / "healing.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def original(models):
    return LlamaForCausalLM.from_pretrained(models / "source").eval()


def in_two_processes(models, out, *more):
    """Return what accelerate launch would run for two processes; on CPUs it starts only one."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--master_port", str(free_port()),
        "-m", "conversion.cli", *arguments(models, out, *more),
    ]  # fmt: skip


def in_shards(models, out, *more, **options):
    """Return the command of two processes that each hold half of each model."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2",
        "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--main_process_port", str(free_port()),
        "-m", "tests.support.sharded", *arguments(models, out, *more, **options),
    ]  # fmt: skip


def interrupt_at(number, monkeypatch):
    """A Ctrl-C at the end of one step."""
    step_end = ShowProgress.on_step_end

    def stop(self, arguments, state, control, **kwargs):
        step_end(self, arguments, state, control, **kwargs)
        if state.global_step == number:
            monkeypatch.setattr(ShowProgress, "on_step_end", step_end)
            raise KeyboardInterrupt

    monkeypatch.setattr(ShowProgress, "on_step_end", stop)
