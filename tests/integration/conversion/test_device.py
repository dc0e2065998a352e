"""A conversion on a GPU, as far as a CPU can tell: right, and without copies to and fro."""

import json
import subprocess
import sys

import pytest

from conversion.recipes.recipe import Recipe

SCRIPT = "tests.support.convert_on_pretend_gpu"
# All fits on the device, or nothing does.
ROOM, NONE = 1e12, 0
CONVERSIONS = {
    "default": ("gqa", ROOM, {}),
    "more windows": ("gqa", ROOM, {"calibration_tokens": 1024}),
    "no room": ("mha", NONE, {"cache_fraction": 0.25, "q_lora_rank": 32}),
    "offloaded": ("gqa", NONE, {"method": "care", "cache_fraction": 0.25, "refit": True}),
    "published": ("mqa", ROOM, {"method": "transmla"}),
    "for GPUs": ("gqa", ROOM, {"target": "cuda", "cache_fraction": 0.45}),
    "plain": ("gqa", ROOM, {"bits": "16"}),
    "plain, no room": ("mha", NONE, {"bits": "16", "cache_fraction": 0.25, "q_lora_rank": 32}),
    "per head": ("gqa", ROOM, {"method": "mha2mla", "latent": "svd-split", "split": "fixed"}),
}


@pytest.fixture(scope="module")
def conversions():
    """How each conversion on a pretended GPU differs from that on the CPU."""
    requests = [
        {"variant": variant, "recipe": recipe, "room": room, "offload": name == "offloaded"}
        for name, (variant, room, recipe) in CONVERSIONS.items()
    ]
    command = [sys.executable, "-m", SCRIPT, json.dumps(requests)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CONVERSIONS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", CONVERSIONS)
def test_as_on_the_cpu(conversions, name):
    found = conversions[name]
    assert found["same_widths"]
    # Both compute in float32, in another order; a code near a border may become its neighbour.
    coded = Recipe(**CONVERSIONS[name][2]).row_bits is not None
    for before, after in found["figures"]:
        assert after == pytest.approx(before, rel=2e-2 if coded else 1e-3, abs=1e-6)
    assert found["logits"] < (1e-2 if coded else 1e-4)


def test_more_windows_are_not_more_copies(conversions):
    few, many = (conversions[name]["crossings"]["times"] for name in ("default", "more windows"))
    # Random probes are drawn on the CPU, for one in three of 8 windows more in each of two layers.
    assert many - few <= 2 * 3


def test_a_target_decides_the_widths_of_rows(conversions):
    layer_widths = conversions["for GPUs"]["layer_widths"]
    assert all(width % 8 == 0 for width in layer_widths)
    # Of 2 * 2 * 16 numbers, 28 on average.
    assert sum(layer_widths) == 2 * 28 // 8 * 8
