"""A checkpoint is the same wherever activations and statistics were kept."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conversion.calibration.store import StatisticsStore
from conversion.errors import StatisticsError
from conversion.layers import measurements
from conversion.pipeline import Options, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from tests.support.processes import full_disk, one_line
from tests.support.tiny import TEXT, save_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(TEXT)
    return save_tiny(folder / "source")


def weights(source, out, statistics=None, offload=None, **recipe):
    text = str(source.parent / "text.txt")
    values = {"calibration": [text], "calibration_tokens": 1000, "window": 100}
    options = Options(offload=offload)
    recipe = Recipe(**values | recipe)
    convert(open_source(str(source)), out, recipe, options, Progress(), statistics)
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("refit", [False, True])
def test_offloading_changes_nothing(source, tmp_path, refit):
    disk = tmp_path / "disk"
    disk.mkdir()
    kept = weights(source, tmp_path / "kept", refit=refit)
    assert weights(source, tmp_path / "offloaded", offload=disk, refit=refit) == kept
    assert list(disk.iterdir()) == []


def arguments(source, out, disk, *more):
    calibration = source.parent / "text.txt"
    return ["convert", source, out, "--calibration", calibration, "--offload", disk, *more]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_no_activations(source, tmp_path, number):
    disk = tmp_path / "disk"
    disk.mkdir()
    asked = arguments(source, tmp_path / "out", disk, "--calibration-tokens", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "conversion.cli", *asked], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not maps(process, disk) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert maps(process, disk)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert list(disk.iterdir()) == []


def maps(process, disk):
    return str(disk) in Path(f"/proc/{process.pid}/maps").read_text()


def test_a_full_disk(source, tmp_path, mha2mla):
    with full_disk(50_000):
        result = mha2mla(*arguments(source, tmp_path / "out", tmp_path))
    line = one_line(tmp_path, [], result)
    assert line.startswith(f"error: --offload {tmp_path}: no room for")


@pytest.mark.parametrize("in_folder", [False, True])
def test_stored_statistics_give_the_same_checkpoint(source, tmp_path, monkeypatch, in_folder):
    folder = tmp_path / "statistics" if in_folder else None
    store = StatisticsStore(folder)
    plain = weights(source, tmp_path / "plain")
    assert weights(source, tmp_path / "first", store) == plain
    refitted = weights(source, tmp_path / "refitted", refit=True)

    def recomputed(*_):
        raise AssertionError("statistics were computed again")

    monkeypatch.setattr(measurements, "layer_statistics", recomputed)
    store = StatisticsStore(folder) if in_folder else store
    assert weights(source, tmp_path / "second", store) == plain
    assert weights(source, tmp_path / "again", store, refit=True) == refitted
    with pytest.raises(StatisticsError, match="another model or calibration text"):
        weights(source, tmp_path / "other", store, window=50)
    assert not (tmp_path / "other").exists()


def test_only_missing_statistics_are_measured(source, tmp_path, monkeypatch):
    folder = tmp_path / "statistics"
    plain = weights(source, tmp_path / "plain", StatisticsStore(folder))
    (folder / "layer-0001.pt").unlink()
    measured = []

    def counted(*arguments):
        measured.append(arguments)
        return measure(*arguments)

    measure = measurements.layer_statistics
    monkeypatch.setattr(measurements, "layer_statistics", counted)
    assert weights(source, tmp_path / "second", StatisticsStore(folder)) == plain
    assert len(measured) == 1
