"""The documentation says what is true: its links, commands, options, keys and code exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from conversion.cli import app
from conversion.healing.recipe import HealingRecipe
from conversion.recipes.recipe import Recipe

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
# What a changelog names may be gone; so may what an experiment tried.
CURRENT = [file for file in FILES if file.name not in ("CHANGELOG.md", "experiments.md")]
README_BYTES = 9000
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Options in the prose that are other programs'.
FOREIGN = {
    *("--multi_gpu", "--use_fsdp", "--fsdp_version", "--enforce-eager", "--kv-cache-dtype"),
    *("--hf-overrides", "--enable-lora", "--kv-transfer-config", "--kv-offloading-size"),
    *("--block-size", "--enable-prompt-embeds", "--calculate-kv-scales", "--max-model-len"),
    *("--disable-hybrid-kv-cache-manager", "--async-scheduling", "--kv-events-config", "--seed"),
    *("--served-model-name", "--runner", "--enable-sleep-mode", "--cpu-offload-gb"),
    *("--ubatch-size", "--offload-group-size", "--tensor-parallel-size"),
    *("--pipeline-parallel-size", "--enable-dbo", "--data-parallel-size"),
    *("--enable-expert-parallel", "--decode-context-parallel-size"),
    *("--prefill-context-parallel-size", "--attention-backend", "--quantization"),
    *("--load-format", "--hf-config-path", "--model-impl"),
}
OF_EXAMPLES = {
    option
    for file in (ROOT / "examples").rglob("*.py")
    for option in re.findall(r'"(--[a-z][a-z-]*)"', file.read_text("utf-8"))
}
COMMANDS = typer.main.get_command(app).commands
OPTIONS = {
    name: {option for parameter in command.params for option in parameter.opts}
    | {option for parameter in command.params for option in parameter.secondary_opts}
    | {"--help"}
    for name, command in COMMANDS.items()
}
KEYS = {*Recipe.model_fields, *HealingRecipe.model_fields}


def page_of(file):
    return file.relative_to(ROOT).as_posix()


of_every = pytest.mark.parametrize("file", FILES, ids=page_of)
of_current = pytest.mark.parametrize("file", CURRENT, ids=page_of)


def prose(file):
    return FENCE.sub("", file.read_text("utf-8"))


def blocks(file, language):
    return [code for name, code in FENCE.findall(file.read_text("utf-8")) if name == language]


def anchors(file):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@of_every
def test_every_relative_link_leads_somewhere(file):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(file)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = (file.parent / path).resolve() if path else file
        assert page.exists(), f"{page_of(file)}: {target}"
        assert not anchor or anchor in anchors(page), f"{page_of(file)}: {target}"


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= README_BYTES


@of_every
def test_every_option_of_a_command_line_exists(file):
    lines = "".join(blocks(file, "")).replace("\\\n", " ").splitlines()
    for line in lines:
        called = re.match(r".*?(?:mha2mla|conversion\.cli) (\w+)(.*)", line)
        if called is None:
            continue
        name, arguments = called.groups()
        assert name in OPTIONS, f"{page_of(file)}: {line}"
        words = shlex.split(arguments, comments=True)
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= OPTIONS[name], f"{page_of(file)}: {line}"


@of_current
def test_every_option_of_the_prose_exists(file):
    known = FOREIGN.union(OF_EXAMPLES, *OPTIONS.values())
    for span in re.findall(r"`(--[^`]+)`", prose(file)):
        options = {word.partition("=")[0] for word in span.split() if word.startswith("--")}
        assert options <= known, f"{page_of(file)}: {span}"


@of_current
def test_every_recipe_key_exists(file):
    text = re.sub(r"\s+", " ", prose(file))
    for key in re.findall(r"recipe keys? `(\w+)", text):
        assert key in KEYS, f"{page_of(file)}: {key}"


@of_every
def test_every_import_of_a_code_block_works(file):
    for code in blocks(file, "python"):
        if "import" not in code:
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page_of(file)}: {alias.name}"


@of_current
def test_every_file_that_is_named_exists(file):
    names = re.findall(r"`((?:conversion|vllm_mha2mla|examples|tests|docs)/[\w/.\-]+)", prose(file))
    for name in names:
        if "NAME" in name:
            continue
        assert (ROOT / name).exists(), f"{page_of(file)}: {name}"


def test_the_worked_example_is_the_file():
    (example,) = (c for c in blocks(ROOT / "docs/adding-a-method.md", "python") if "METHOD =" in c)
    assert example == (ROOT / "conversion/rotary/low.py").read_text("utf-8")


@of_every
def test_no_figure_is_missing(file):
    assert "…" not in file.read_text("utf-8")
