"""Conversions of tiny models in this process."""

import torch
from transformers import AutoModelForCausalLM

import vllm_mha2mla  # noqa: F401, registers the converted families
from conversion.pipeline import Options, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from conversion.text.windows import evaluation_windows
from tests.support.tiny import TEXT, tiny_tokenizer


def convert_tiny(source, out, **recipe):
    """Convert a tiny model on the usual text, in float32; return it as transformers loads it."""
    text = out.parent / "calibration.txt"
    text.write_text(TEXT)
    values = {"calibration": [str(text)], "calibration_tokens": 1024, "window": 128}
    options = Options(dtype=torch.float32)
    convert(open_source(str(source)), out, Recipe(**values | recipe), options, Progress())
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def windows():
    """Return four windows of the usual text  # [4, 128]"""
    return evaluation_windows(tiny_tokenizer(), TEXT, 128, 4)
