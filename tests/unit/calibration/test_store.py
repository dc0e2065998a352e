import dataclasses

import pytest
import torch

from conversion.calibration.rotated_keys import RotatedKeys
from conversion.calibration.statistics import LayerStatistics
from conversion.calibration.store import StatisticsStore
from conversion.errors import OutputError, StatisticsError


def statistics(with_turned=True):
    values = {f.name: torch.randn(3, 2).double() for f in dataclasses.fields(LayerStatistics)}
    rho = torch.randn(3, 2, dtype=torch.complex128)
    turned = RotatedKeys(*(torch.randn(2, 3) for _ in dataclasses.fields(RotatedKeys)))
    return LayerStatistics(**values | {"rho": rho, "rotated": turned if with_turned else None})


def equal(first, second):
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        return all(equal(getattr(first, name), getattr(second, name)) for name in names)
    return first is second if first is None else torch.equal(first, second)


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return StatisticsStore(tmp_path / "statistics" if request.param == "folder" else None)


def test_what_is_put_is_what_is_got(store):
    first, second = statistics(), statistics(with_turned=False)
    assert store.get(0) is None
    assert 0 not in store
    store.put(0, first)
    store.put(1, statistics())
    store.put(1, second)
    assert 1 in store
    assert equal(store.get(0), first)
    assert equal(store.get(1), second)


def test_statistics_of_something_else_are_refused(store):
    store.claim("model text")
    store.claim("model text")
    with pytest.raises(StatisticsError, match="another model or calibration text"):
        store.claim("model other-text")


def test_a_folder_outlives_its_store(tmp_path):
    first = StatisticsStore(tmp_path)
    first.claim("model text")
    found = statistics()
    first.put(3, found)
    again = StatisticsStore(tmp_path)
    with pytest.raises(StatisticsError, match="another model"):
        again.claim("other-model text")
    assert equal(again.get(3), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer-0003.pt", "origin.txt"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 torn"])
def test_a_damaged_file(tmp_path, content):
    store = StatisticsStore(tmp_path)
    store.put(0, statistics())
    (tmp_path / "layer-0000.pt").write_bytes(content)
    with pytest.raises(StatisticsError, match=r"layer-0000\.pt: not the statistics of a layer"):
        store.get(0)


def test_a_file_of_a_version_that_measured_less(tmp_path):
    store = StatisticsStore(tmp_path)
    store.put(0, statistics())
    path = tmp_path / "layer-0000.pt"
    values = torch.load(path)
    del values["rotated"]
    torch.save(values, path)
    with pytest.raises(StatisticsError, match=r"layer-0000\.pt: not the statistics of a layer"):
        store.get(0)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        StatisticsStore(tmp_path / "file").put(0, statistics())
