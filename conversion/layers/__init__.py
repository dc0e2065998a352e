"""One decoder layer: the original's, and its conversion."""
