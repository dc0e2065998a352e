"""The cost of --help and --version, and their words."""

import importlib.metadata
import inspect
import subprocess
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

from conversion.cli import app
from conversion.commands.convert import convert_command
from conversion.commands.heal import heal_command
from conversion.commands.options import recipe_options
from conversion.commands.sweep import sweep_command
from conversion.healing.recipe import HealingRecipe
from conversion.recipes.recipe import Recipe

COMMANDS = ("convert", "inspect", "eval", "sweep", "bench", "heal", "export", "methods")
# Each takes a second or more to import.
HEAVY = ("torch", "transformers", "accelerate", "lm_eval", "matplotlib", "vllm")
PROGRAM = f"""
import sys
from conversion.cli import app
app(sys.argv[1:], standalone_mode=False)
print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""


# Presses Ctrl-C where the command imports torch.
INTERRUPTED_IMPORT = """
import signal, sys

class Press:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Press())
signal.signal(signal.SIGINT, signal.default_int_handler)
from conversion.cli import main
main()
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
)
def test_nothing_heavy_is_imported(arguments):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "imported:"


def test_an_interrupted_import_ends_the_command_well(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, "inspect", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 130
    assert run.stderr.splitlines()[-1] == "interrupted; nothing half-written was left behind"
    assert "Traceback" not in run.stderr


def test_a_mistyped_option_is_named():
    result = CliRunner().invoke(app, ["convert", "source", "out", "--cache-fractoin", "0.5"])
    assert result.exit_code == 2
    assert "--cache-fractoin" in result.output


def test_the_version_is_the_installed_one():
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.split() == ["mha2mla", importlib.metadata.version("vllm-mha2mla")]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_default_is_a_python_value(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "400"})
    assert result.exit_code == 0
    assert "None" not in result.output
    assert "Undefined" not in result.output


@pytest.mark.parametrize(
    ("command", "recipe", "names"),
    [
        (convert_command, Recipe, {"cache_fraction", "bits", "spread", "calibration", "method"}),
        (sweep_command, Recipe, {"calibration", "held_out_tokens"}),
        (heal_command, HealingRecipe, {"tokens", "objective", "lr"}),
    ],
)
def test_options_are_the_fields(command, recipe, names):
    parameters = inspect.signature(command).parameters
    assert names <= parameters.keys()
    for name in names:
        option = get_args(parameters[name].annotation)[1]
        assert recipe.model_fields[name].description in option.help


def test_an_option_of_no_field_is_refused():
    with pytest.raises(KeyError):
        recipe_options(Recipe, "cache_fractoin")(lambda **given: None)
