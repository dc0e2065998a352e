"""The walls between rooms: imports run in one direction, wherever in a file they stand."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A room imports only rooms before it, besides errors and vllm_mha2mla.
ROOMS = [
    "runtime",
    "text",
    "families",
    "source",
    "checkpoint",
    "calibration",
    "rotary",
    "latent",
    "recipes",
    "coding",
    "layers",
    "evaluation",
    "bench",
    "healing",
    "allocation",
    "pipeline",
    "sweep",
    "commands",
    "cli",
]
# Rooms that stand before another and are none of its business.
NEVER = {
    "families": {"runtime", "text"},
    "checkpoint": {"text"},
    "layers": {"checkpoint"},
    "evaluation": {"calibration", "rotary", "latent", "recipes", "coding", "layers"},
    "bench": {"calibration", "rotary", "latent", "recipes", "coding", "layers", "evaluation"},
    "healing": {"calibration", "rotary", "latent", "coding", "layers", "evaluation", "bench"},
    "coding": {"text", "source", "checkpoint", "calibration", "rotary", "latent", "recipes"},
}
# Of vllm_mha2mla, the files that run inside the engine.
IN_THE_ENGINE = (
    *("plugin.py", "refusal.py", "engine_config.py", "cpu_cache.py", "cpu_worker.py"),
    *("refused_options.py", "overrides.py", "attention/", "models/"),
    *("kernels/cuda/flash.py", "kernels/cuda/workspace.py"),
)


def imports(path):
    """The dotted names of all that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def importers(package, of):
    """The files of a package that import from a top-level package."""
    files = sorted((ROOT / package).rglob("*.py"))
    return [
        file.relative_to(ROOT / package).as_posix()
        for file in files
        if any(name.split(".")[0] == of for name in imports(file))
    ]


def files(room):
    folder = ROOT / "conversion" / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room):
    allowed = {room, "errors", *ROOMS[: ROOMS.index(room)]} - NEVER.get(room, set())
    for file in files(room):
        rooms = {n.split(".")[1] for n in imports(file) if n.startswith("conversion.")}
        assert rooms <= allowed, f"{file} imports {rooms - allowed}"


def test_every_file_is_in_a_room():
    found = {path.relative_to(ROOT / "conversion").parts[0] for path in files("")}
    assert {name.removesuffix(".py") for name in found} == {*ROOMS, "errors", "__init__"}


def test_serving_never_imports_conversion():
    assert importers("vllm_mha2mla", "conversion") == []


def test_vllm_is_imported_only_inside_the_engine():
    assert importers("conversion", "vllm") == []
    users = importers("vllm_mha2mla", "vllm")
    assert users
    assert all(file.startswith(IN_THE_ENGINE) for file in users)


def test_commands_alone_know_the_command_line():
    users = importers("conversion", "typer")
    assert users
    assert all(file.startswith(("commands/", "cli.py")) for file in users)
