"""Interfaces of transformers, PyTorch and vLLM that may change: each is as this package uses it."""

import ast
from pathlib import Path

import pytest

from tests.support.definitions import definition, is_module
from vllm_mha2mla.private_names import PRIVATE_NAMES, PrivateName

ROOT = Path(__file__).parents[2]
PACKAGES = ("conversion", "vllm_mha2mla")
# Their modules are private interfaces throughout.
FOREIGN = ("accelerate", "transformers", "vllm")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TREES = {file: ast.parse(file.read_text("utf-8")) for file in FILES}


def change(private: PrivateName) -> str | None:
    """The sentence about what changed; ``None``: nothing."""
    library, place = private.name.split(".")[0], private.name.rpartition(":")[2]
    found = definition(private.name)
    if found is None:
        return f"{library} has no {place} any more ({private.name}): look at {private.used_in}"
    given = ", ".join(found.parameters)
    if private.parameters.startswith("..."):
        needed = private.parameters.removeprefix("...").strip(", ").split(", ")
        same = set(needed) - {""} <= set(found.parameters)
    else:
        same = given in [way.strip() for way in private.parameters.split("|")]
    if same:
        return None
    return (
        f"{library} changed {place} (signature ({given}), expected ({private.parameters})): "
        f"look at {private.used_in}"
    )


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: private.name)
def test_a_private_name_is_as_it_is_used(private):
    pytest.importorskip(private.name.split(".")[0])
    assert change(private) is None, change(private)


def test_what_changed_is_said_with_the_file_to_look_at():
    real = next(x for x in PRIVATE_NAMES if x.name.endswith("._save_rng_state"))
    assert change(real._replace(parameters="self, folder")) == (
        "transformers changed Trainer._save_rng_state (signature (self, output_dir), expected "
        "(self, folder)): look at conversion/healing/private_apis.py"
    )
    assert change(real._replace(parameters="..., output_dir")) is None
    assert change(real._replace(parameters="..., other")) is not None
    assert change(real._replace(name="transformers.trainer:Trainer._gone")) == (
        "transformers has no Trainer._gone any more (transformers.trainer:Trainer._gone): look at "
        "conversion/healing/private_apis.py"
    )


NO_SIGN = ("__init__", "...", "self", "")


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: private.name)
def test_a_listed_name_is_used_where_the_list_says(private):
    words = [*private.name.rpartition(":")[2].split("."), *private.parameters.split(", ")]
    for file in private.used_in.split(", "):
        source = (ROOT / file).read_text("utf-8")
        assert any(word in source for word in words if word not in NO_SIGN)


def private_uses():
    """Attributes with a leading underscore that are not of our own classes."""
    own = {
        node.name if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        or (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        )
    }
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                yield node.attr, file.relative_to(ROOT).as_posix()


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


# Of Python itself, of ctypes, and one that PyTorch's compiled part has.
PYTHONS = {"_fields_", "_is_mkldnn_bf16_supported", "_asdict", "_replace", "_fields"}


def test_every_private_attribute_is_in_the_list():
    listed = {
        (private.name.rpartition(".")[2], file)
        for private in PRIVATE_NAMES
        for file in private.used_in.split(", ")
    }
    found = {use for use in private_uses() if use[0] not in PYTHONS}
    assert found
    assert found <= listed, f"add to vllm_mha2mla/private_names.py: {sorted(found - listed)}"


def imported():
    """Names imported from modules within other packages, with the file of ours."""
    for file, tree in TREES.items():
        # What is imported under ``try`` may be missing.
        tried = {
            inner for outer in ast.walk(tree) if isinstance(outer, ast.Try) for inner in outer.body
        }
        for node in set(ast.walk(tree)) - tried:
            if isinstance(node, ast.ImportFrom) and is_within(node.module):
                for alias in node.names:
                    yield node.module, alias.name, file.relative_to(ROOT).as_posix()


def is_within(module):
    package, _, rest = module.partition(".")
    return package in FOREIGN and rest != ""


@pytest.mark.parametrize("library", FOREIGN)
def test_every_imported_name_is_where_it_is_imported_from(library):
    pytest.importorskip(library)
    moved = [
        f"{library} has no {module}.{name} any more: look at {file}"
        for module, name, file in imported()
        if module.split(".")[0] == library
        if definition(f"{module}:{name}") is None and not is_module(f"{module}.{name}")
    ]
    assert not moved, "\n".join(moved)
