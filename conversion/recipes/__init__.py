"""What to make: the typed recipe, the methods it names, and presets."""
