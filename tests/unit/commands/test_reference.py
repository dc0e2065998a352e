"""The page of recipe keys is what the fields say."""

from pathlib import Path

from conversion.commands.reference import reference
from conversion.healing.recipe import HealingRecipe
from conversion.recipes.fields import default_text, type_text
from conversion.recipes.presets import presets
from conversion.recipes.recipe import Recipe

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == reference(), (
        "run: python -m conversion.commands.reference > docs/recipes.md"
    )


def test_every_key_and_preset_has_a_row():
    rows = {line.split("|")[1].strip() for line in reference().splitlines() if line[:2] == "| "}
    names = [*Recipe.model_fields, *HealingRecipe.model_fields, *presets()]
    assert {f"`{name}`" for name in names} <= rows


def test_every_row_has_as_many_cells_as_its_heading():
    for table in reference().split("\n\n"):
        if table.startswith("| "):
            assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_types_and_defaults_in_words():
    fields = Recipe.model_fields
    assert type_text(fields["cache_fraction"]) == "number, above 0, at most 1"
    assert type_text(fields["split"]) == "auto or fixed"
    assert default_text(fields["cache_fraction"]) == "0.5"
    assert default_text(fields["weigh_tokens"]) == "on"
    assert default_text(fields["refine_lr"]) == "0.0001"
