"""The attention kernels as Triton's compiler sees it, which its interpreter does not check."""

import json
import subprocess
import sys

import pytest

# Compute capability, and the shared memory of a program: A100, L40S, H100.
AMPERE, ADA, HOPPER = (80, 163 << 10), (89, 99 << 10), (90, 227 << 10)
CASES = [
    ("plain", *HOPPER, 192, 64, 32),
    ("plain", *HOPPER, 192, 64, 64),
    ("plain", *HOPPER, 448, 64, 32),
    ("plain", *HOPPER, 512, 64, 32),
    ("plain", *AMPERE, 192, 64, 16),
    ("plain", *ADA, 512, 64, 16),
    ("coded", *HOPPER, 192, 64, 32),
    ("coded", *AMPERE, 56, 32, 16),
]


@pytest.mark.slow
def test_it_compiles_for_gpus_within_their_shared_memory():
    command = [sys.executable, "-m", "tests.support.compile_triton", json.dumps(CASES)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    kernels = json.loads(run.stdout)
    for (kind, capability, limit, *_), kernel in zip(CASES, kernels, strict=True):
        assert kernel["shared"] <= kernel["estimate"] <= limit
        if capability == 90:
            assert kernel["wgmma"]
            assert kernel["copies"] or kind == "coded"
