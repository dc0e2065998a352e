"""One conversion by itself and its perplexity, to which a sweep's figures are held."""

import math

import torch
from transformers import AutoModelForCausalLM

from conversion.pipeline import Options, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from conversion.text.windows import evaluation_windows
from tests.support.tiny import tiny_tokenizer

LAYERS, WINDOW = 2, 64
CALIBRATION = {"calibration_tokens": 512, "window": WINDOW, "held_out_tokens": 128}
UNSEEN = "Something else entirely: whales, 1851, and the sea; nothing of it was calibrated on. " * 9


def single(folder, out, **recipe):
    """One conversion by itself."""
    values = CALIBRATION | {"calibration": [str(folder / "calibration.txt")]} | recipe
    options = Options(dtype=torch.float32)
    convert(open_source(str(folder / "source")), out, Recipe(**values), options, Progress())
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def perplexity(model):
    ids = evaluation_windows(tiny_tokenizer(), UNSEEN, WINDOW, None)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
