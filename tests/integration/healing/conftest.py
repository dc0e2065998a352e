"""Originals and their conversions, made once: no healing changes what it is made from."""

import pytest

from tests.support.convert import convert_tiny
from tests.support.tiny import TEXT, save_tiny


def make(folder, **recipe):
    convert_tiny(save_tiny(folder / "source"), folder / "converted", **recipe)
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="session")
def poor_models(tmp_path_factory):
    """An original, its conversion by a method that leaves much to repair, and a text."""
    folder = tmp_path_factory.mktemp("poor")
    return make(folder, cache_fraction=0.3, split="fixed", method="mha2mla")


@pytest.fixture(scope="session")
def good_models(tmp_path_factory):
    """An original, its conversion by our method, and a text."""
    return make(tmp_path_factory.mktemp("good"), cache_fraction=0.5, bits=16, refit=False)
