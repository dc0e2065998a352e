"""A converted checkpoint as a folder: written whole, read back, described."""
