"""Recipes: typed settings of a conversion, the methods they name, and presets."""
