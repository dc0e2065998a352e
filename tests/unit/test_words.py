"""Docstrings begin with what they are about: an imperative, or a noun with its article."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("conversion", "vllm_mha2mla", "examples")
RIDDLES = {"What", "Whether", "How", "Of"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node, text


def riddles(source):
    return [
        f"{getattr(node, 'name', 'the file')}: {text.splitlines()[0]}"
        for node, text in docstrings(source)
        if text.split()[0].strip(",:.;") in RIDDLES
    ]


def test_a_riddle_is_found():
    source = '"""What it is."""\nclass A:\n    def f(self):\n        """Of a thing, one."""\n'
    assert len(riddles(source)) == 2


def test_no_docstring_begins_with_a_riddle():
    found = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if (lines := riddles(path.read_text("utf-8")))
    }
    assert not found
