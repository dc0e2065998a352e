"""The command ``mha2mla heal`` on tiny models, and what it leaves."""

import csv

from transformers import LlamaForCausalLM

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
