"""A short run of the checkpoint fuzzer (``make fuzz``)."""

import subprocess
import sys


def test_damaged_checkpoints_are_refused_or_read_exactly():
    command = [sys.executable, "-m", "tests.fuzz", "--count", "100", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = next(line for line in result.stdout.splitlines() if line.startswith("| all"))
    cases, refused, right, wrong = (int(cell) for cell in counts.strip("| ").split(" | ")[1:])
    assert (cases, wrong) == (100, 0)
    assert min(refused, right) > 15
