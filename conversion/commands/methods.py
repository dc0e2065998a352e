"""``mha2mla methods``: the methods to choose from, and where each is described."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def methods_command() -> None:
    """List methods and strategies, and where each is described."""
    # Looking up a strategy imports torch.
    from conversion.latent import LATENT
    from conversion.recipes.methods import METHODS
    from conversion.rotary import ROTARY

    methods = Table(title="--method", title_justify="left", box=None)
    for heading in ("name", "--rotary", "--latent"):
        methods.add_column(heading, no_wrap=True)
    for name, method in METHODS.items():
        methods.add_row(name, method.rotary, method.latent)
    console = Console()
    console.print(methods)
    console.print(strategies_table("--rotary", ROTARY, lambda method: method.choose))
    console.print(strategies_table("--latent", LATENT, lambda method: method.factorise))


def strategies_table(
    option: str, strategies: Mapping[str, Any], function: Callable[[Any], Any]
) -> Table:
    """The strategies that an option names, for a terminal.

    Args:
        option: its name.
        strategies: a registry of rotary or of latent methods.
        function: gives a method's function, whose docstring's first line describes it.
    """
    table = Table(title=f"\n{option}", title_justify="left", box=None)
    table.add_column("name", no_wrap=True)
    table.add_column("reference", no_wrap=True)
    table.add_column("description")
    for name, method in strategies.items():
        description = (function(method).__doc__ or "").strip().splitlines()[0]
        table.add_row(name, method.reference, description.replace("``", ""))
    return table
