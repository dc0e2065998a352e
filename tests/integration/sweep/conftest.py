"""A source, texts and recipes; `mha2mla sweep` in this process; what it did, counted."""

import pytest

from conversion.evaluation import compare
from conversion.layers import measurements
from conversion.sweep import run as sweep
from tests.support.sweep import CALIBRATION, LAYERS, UNSEEN, WINDOW
from tests.support.tiny import TEXT, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    save_tiny(folder / "source", num_hidden_layers=LAYERS)
    (folder / "calibration.txt").write_text(TEXT)
    (folder / "text.txt").write_text(UNSEEN)
    for name, changes in {
        "ours": {"cache_fraction": 0.4},
        "paper": {"cache_fraction": 0.4, "method": "mha2mla"},
        "longer": {"cache_fraction": 0.4, "window": 32},
    }.items():
        lines = [f"{key}: {value}\n" for key, value in (CALIBRATION | changes).items()]
        (folder / f"{name}.yaml").write_text("".join(lines))
    return folder


@pytest.fixture
def run(folder, tmp_path, mha2mla):
    def run(*arguments, source=folder / "source"):
        return mha2mla(
            "sweep", source, "--out", tmp_path / "out", "--text", folder / "text.txt",
            "--window", WINDOW, "--calibration", folder / "calibration.txt",
            "--dtype", "float32", *arguments,
        )  # fmt: skip

    return run


@pytest.fixture
def counted(monkeypatch):
    """Counts of layers measured, checkpoints converted, originals loaded."""
    counts = {"statistics": 0, "conversions": [], "originals": 0}
    measure, convert_one, load = measurements.layer_statistics, sweep.convert, compare.source_model

    def statistics(*arguments):
        counts["statistics"] += 1
        return measure(*arguments)

    def conversion(source, out, *arguments, **options):
        counts["conversions"].append(out.name)
        return convert_one(source, out, *arguments, **options)

    def original(*arguments):
        counts["originals"] += 1
        return load(*arguments)

    monkeypatch.setattr(measurements, "layer_statistics", statistics)
    monkeypatch.setattr(sweep, "convert", conversion)
    monkeypatch.setattr(compare, "source_model", original)
    return counts
