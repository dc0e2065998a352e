"""A conversion on a GPU, as far as a CPU can tell: right, and without copies to and fro."""

import json
import subprocess
import sys

import pytest

SCRIPT = "tests.support.convert_on_pretend_gpu"


def on_pretend_gpu(variant="gqa", room=1e12, offload=False, **recipe):
    """Return how the conversion on a pretended GPU differs from that on the CPU."""
    request = {"variant": variant, "recipe": recipe, "room": room, "offload": offload}
    command = [sys.executable, "-m", SCRIPT, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("variant", "recipe"),
    [
        ("gqa", {}),
        ("mha", {"method": "calibrated", "cache_fraction": 0.25, "q_lora_rank": 32}),
        ("mqa", {"method": "transmla", "refit": True}),
        ("gqa", {"method": "care", "cache_fraction": 0.25}),
        ("gqa", {"method": "mha2mla", "latent": "svd-split", "split": "fixed"}),
    ],
)
# All fits on the device, or nothing does.
@pytest.mark.parametrize("room", [1e12, 0])
def test_as_on_the_cpu(variant, recipe, room):
    found = on_pretend_gpu(variant, room, offload=room == 0, **recipe)
    assert found["same_widths"]
    # Both compute in float32, in another order.
    for before, after in found["figures"]:
        assert after == pytest.approx(before, rel=1e-3, abs=1e-6)
    assert found["logits"] < 1e-4


def test_more_windows_are_not_more_copies():
    few, many = (
        on_pretend_gpu(calibration_tokens=tokens)["crossings"] for tokens in (512, 1024)
    )
    assert many["to the CPU"] <= few["to the CPU"] * 1.02
    # Random probes are drawn on the CPU, for one in three windows of each of two layers.
    assert many["times"] - few["times"] <= 2 * 3
