"""A conversion on a GPU is the one on the CPU, within rounding."""

import json

import pytest
import torch

from conversion.pipeline import Options, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from tests.support.tiny import TEXT, save_tiny

WIDTHS = ("kv_lora_rank_per_layer", "qk_rope_head_dim_per_layer")


@pytest.fixture(scope="module")
def conversions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversions")
    source = open_source(str(save_tiny(folder / "source")))
    (folder / "text.txt").write_text(TEXT)
    recipe = Recipe(calibration=[str(folder / "text.txt")], calibration_tokens=1024, window=128)

    def converted(device):
        options = Options(device=device, dtype=torch.float32)
        made = convert(source, folder / device, recipe, options, Progress())
        return made, json.loads((folder / device / "config.json").read_text())

    return converted("cpu"), converted("cuda")


def test_the_same_widths(conversions):
    (_, on_cpu), (_, on_gpu) = conversions
    assert [on_gpu.get(key) for key in WIDTHS] == [on_cpu.get(key) for key in WIDTHS]


def test_the_same_figures(conversions):
    (on_cpu, _), (on_gpu, _) = conversions
    # Both compute in float32, in another order.
    assert on_gpu.figures == pytest.approx(on_cpu.figures, rel=1e-3, abs=1e-6)
