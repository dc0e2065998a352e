"""``examples/benchmarks/coded_latents.py``: the parts agree, and the whole runs."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.support.tiny import save_tiny
from vllm_mha2mla.config import LatentWidths

EXAMPLES = str(Path(__file__).parents[3] / "examples" / "benchmarks")


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.mark.parametrize(
    ("bits", "distortion"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)]
)
def test_codebooks_are_those_of_max(load, bits, distortion):
    """Table I of J. Max, "Quantizing for minimum distortion" (1960), to its four digits."""
    codebooks = load("coded_latents_parts.codebooks")
    assert codebooks.gaussian_codebook(bits).distortion == pytest.approx(distortion, rel=1e-3)


@pytest.mark.parametrize("rank", [60, 40])
def test_coded_rows_lose_what_the_plan_says(load, rank):
    rows, measure, plan = (
        load(f"coded_latents_parts.{name}") for name in ("rows", "measure", "plan")
    )
    torch.manual_seed(0)
    full, rope = 60, 16
    M, N = torch.randn(2, full + rope, full + rope)
    C = M * torch.logspace(0, -3, full + rope) @ M.T
    G = 1e-3 * (N * torch.logspace(0, -2, full + rope) @ N.T)
    mean = 5 * torch.randn(full + rope)
    statistics = rows.RowStatistics(G, C, mean, rope)
    widths = LatentWidths(rank, rope)
    components = measure._component_costs(statistics, rank)
    candidate = measure.Candidate(widths, 0.0, components, statistics)
    (chosen,) = plan.plan([[candidate]], 3 * (rank + rope))
    assert chosen.row_bits <= 3 * (rank + rope)
    y = torch.randn(4, 256, full + rope) @ torch.linalg.cholesky(C).T + mean
    kept = [*range(rank), *range(full, full + rope)]
    error = rows.RowCode(statistics, widths, chosen.bits)(y[..., kept]) - y[..., kept]
    assert not error[:, 0].any()
    cost = ((error[:, 1:] @ G[kept][:, kept]) * error[:, 1:]).sum(-1).mean() / 2
    # Rows are Gaussian, but a row's scale follows 16 numbers, and the metric that bits are chosen
    # by is drawn towards its diagonal.
    assert float(cost) == pytest.approx(chosen.cost, rel=0.15)


def test_the_whole_runs_within_its_bytes(load, monkeypatch, tmp_path, capsys):
    source = save_tiny(tmp_path / "source")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} and {n * n % 97} are numbers. " for n in range(1500)), "utf-8")
    arguments = [
        *("coded_latents.py", str(source), "--fraction", "0.1", "0.35", "--windows", "2"),
        *("--calibration", str(text), "--text", str(text)),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    load("coded_latents").main()
    printed = capsys.readouterr().out
    found = re.findall(r"([\d.]+)% of the bytes.*KL ([\d.]+)", printed)
    (few, far), (many, near) = ((float(size), float(loss)) for size, loss in found)
    assert few <= 10
    assert 30 < many <= 35
    assert near < far
