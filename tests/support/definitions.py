"""Definitions in the source of installed packages, read without importing them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Definition:
    """A name in a module or class; ``parameters`` are those of a function, or a class's fields."""

    parameters: tuple[str, ...] = ()


def definition(name: str) -> Definition | None:
    """Find ``package.module:Class.method``; ``None`` where there is no such name."""
    module, _, path = name.partition(":")
    tree = _tree(module)
    if tree is None:
        return None
    *classes, last = path.split(".")
    if not classes and _defined(tree, last) is None:
        return next(
            filter(None, (definition(f"{star}:{last}") for star in _stars(tree, module))), None
        )
    for part in classes:
        found = _defined(tree, part)
        if not isinstance(found, ast.ClassDef):
            return None
        tree = found
    found = _defined(tree, last)
    if isinstance(found, FUNCTIONS):
        return Definition(_parameters(found))
    if isinstance(found, ast.ClassDef):
        constructor = _defined(found, "__init__")
        if isinstance(constructor, FUNCTIONS):
            return Definition(_parameters(constructor)[1:])
        fields = [x.target.id for x in found.body if isinstance(x, ast.AnnAssign)]
        return Definition(tuple(fields))
    return None if found is None else Definition()


def is_module(name: str) -> bool:
    """True if a dotted name is a file or folder of an installed package."""
    return _file(name) is not None


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    given = function.args
    names = [arg.arg for arg in (*given.posonlyargs, *given.args)]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [arg.arg for arg in given.kwonlyargs]
    return tuple(names + ([f"**{given.kwarg.arg}"] if given.kwarg else []))


def _defined(tree: ast.AST, name: str) -> ast.AST | None:
    """What gives a name in a module or class, under ``if`` and ``try`` too."""
    return next((x for x in ast.walk(tree) if x is not tree and name in _given(x)), None)


def _given(node: ast.AST) -> tuple[str, ...]:
    """Names that a definition, an import or an assignment gives; and words in tables of names."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return (name,)
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return tuple(alias.asname or alias.name for alias in names)
        case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
            return (name,)
        case ast.Constant(value=str(name)):
            return (name,)
    return ()


def _stars(tree: ast.Module, module: str) -> Iterator[str]:
    """Modules that a package hands on whole."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield f"{module}.{node.module}" if node.level else node.module or ""


@cache
def _tree(module: str) -> ast.Module | None:
    file = _file(module)
    return None if file is None else ast.parse(file.read_text("utf-8"))


def _file(module: str) -> Path | None:
    package, *parts = module.split(".")
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place).joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None
