"""Registries that know their entries' names at once and import an entry when it is looked up."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """Entries by name; each is the ``METHOD`` of a module of its own.

    Recipes are checked and ``--help`` lists the names without importing the modules, which need
    torch.

    Args:
        package: the package of the modules.
        modules: module by name, in the order in which names are listed.
    """

    def __init__(self, package: str, modules: dict[str, str]) -> None:
        self._package = package
        self._modules = modules

    def __getitem__(self, name: str) -> Entry:
        entry: Entry = import_module(f"{self._package}.{self._modules[name]}").METHOD
        return entry

    # The inherited one looks the entry up, and so imports it.
    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)
