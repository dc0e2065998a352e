"""Versions of vLLM and transformers: refused, warned about, or passed in silence."""

import logging

import pytest

from vllm_mha2mla import plugin
from vllm_mha2mla.versions import Releases

TESTED = Releases("vllm", (0, 30), (0, 32))


@pytest.mark.parametrize(
    ("version", "place"),
    [
        ("0.29.9", "older"),
        ("0.9.2", "older"),
        ("0.30.0", "inside"),
        ("0.32.1+cpu", "inside"),
        ("0.32.0rc2", "inside"),
        ("0.33.0rc1", "newer"),
        ("1.0.0", "newer"),
        ("0.1.dev7+g0123abc", "unknown"),
        ("dev", "unknown"),
    ],
)
def test_the_place_of_a_version(version, place):
    assert TESTED.place(version) == place
    assert (TESTED.refusal(version) is not None) == (place == "older")
    assert (TESTED.warning(version) is not None) == (place in ("newer", "unknown"))


def test_the_lines_name_the_version_and_the_way_out():
    refusal, warning = TESTED.refusal("0.29.0"), TESTED.warning("0.33.0")
    assert refusal.startswith("vllm 0.29.0 is older than 0.30, the oldest release")
    assert warning.startswith("vllm 0.33.0 has not been tested with vllm-mha2mla")
    for line in (refusal, warning):
        assert line.endswith('pip install "vllm>=0.30,<0.33"')


def test_registration_raises_nothing_where_even_the_refusal_fails(monkeypatch, caplog):
    """vLLM calls it in every process, for models that are none of its business."""

    def missing(*args):
        raise ImportError("cannot import name 'ModelRegistry'")

    monkeypatch.setattr(plugin, "_register", missing)
    monkeypatch.setitem(__import__("sys").modules, "vllm_mha2mla.refusal", None)
    with caplog.at_level(logging.WARNING):
        plugin.register()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "converted models are not served" in line
    assert "cannot import name 'ModelRegistry'" in line
