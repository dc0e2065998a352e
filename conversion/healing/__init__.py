"""Healing: a short training that gives back what a conversion took."""

from conversion.healing.recipe import HealingRecipe, make_healing_recipe
from conversion.healing.run import Healing, heal

__all__ = ["Healing", "HealingRecipe", "heal", "make_healing_recipe"]
