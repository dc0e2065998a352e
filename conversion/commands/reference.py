"""The reference of recipe keys: ``python -m conversion.commands.reference > docs/recipes.md``."""

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence

import yaml
from pydantic import BaseModel

from conversion.commands.convert import convert_command
from conversion.commands.heal import heal_command
from conversion.healing.recipe import HealingRecipe
from conversion.recipes.fields import default_text, type_text
from conversion.recipes.methods import METHODS
from conversion.recipes.presets import FOLDER, presets
from conversion.recipes.recipe import Recipe

INTRODUCTION = """\
# Recipes

<!-- Written by: python -m conversion.commands.reference > docs/recipes.md
     The texts are those of the fields in conversion/recipes/recipe.py and
     conversion/healing/recipe.py. -->

A recipe is a YAML file that `--recipe` reads. Every key may be left out. Keys with an option can
also be given on the command line, where they win over the file. Of the keys that are on or off,
`true` is on and `false` is off; their options are `--refit` and `--no-refit`. The recipe is written
into the `config.json` of the checkpoint that it makes.

```yaml
cache_fraction: 0.25
held_out_tokens: 8192
refine_steps: 300
calibration: [articles.txt, chats.jsonl]
```
"""

METHODS_TEXT = """\
A method is a pair of strategies, either of which `rotary` and `latent` can replace; `mha2mla
methods` says where each strategy is described. The method also decides the share of the cache that
`split: fixed` gives to rotary numbers, and whether `spread` and `refit` are on by default.
"""


def reference() -> str:
    """Write the Markdown page of all recipe keys, methods and presets."""
    return "\n".join(
        (
            INTRODUCTION,
            "## Conversion: `mha2mla convert` and `mha2mla sweep`\n",
            keys_table(Recipe, convert_command),
            "## Methods\n",
            METHODS_TEXT,
            methods_table(),
            "## Presets\n",
            "A preset is a recipe that comes with the package: `--recipe quarter`.\n",
            presets_table(),
            "## Healing: `mha2mla heal`\n",
            keys_table(HealingRecipe, heal_command),
        )
    )


def keys_table(recipe: type[BaseModel], command: Callable[..., None]) -> str:
    """A row for each key of a recipe.

    Args:
        recipe: the recipe's model.
        command: the command whose options some of the keys are.
    """
    options = inspect.signature(command).parameters
    rows = []
    for name, field in recipe.model_fields.items():
        option = f"`--{name.replace('_', '-')}`" if name in options else ""
        row = (f"`{name}`", option, type_text(field), default_text(field), field.description or "")
        rows.append(row)
    return _table(("key", "option", "value", "default", "meaning"), rows)


def methods_table() -> str:
    """A row for each method."""
    rows = [
        (
            f"`{name}`",
            f"`{method.rotary}`",
            f"`{method.latent}`",
            f"{method.rope_share:.3g}",
            "on" if method.spread else "off",
            "on" if method.refit else "off",
        )
        for name, method in METHODS.items()
    ]
    return _table(("method", "rotary", "latent", "rotary share", "spread", "refit"), rows)


def presets_table() -> str:
    """A row for each preset: its keys, and the comment at its beginning."""
    rows = []
    for name in presets():
        text = (FOLDER / f"{name}.yaml").read_text("utf-8")
        comment = [line[2:] for line in text.splitlines() if line.startswith("# ")]
        values = yaml.safe_load(text)
        # A third has more digits than a table should.
        keys = ", ".join(
            f"`{key}: {_shown(value)}`" for key, value in values.items() if key != "method"
        )
        rows.append((f"`{name}`", keys, " ".join(comment)))
    return _table(("preset", "keys", "meaning"), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: object) -> str:
    """A value as it stands in YAML, a fraction with three digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(reference())
