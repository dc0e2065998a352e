"""Needs of a long computation: screen, signals, memory, precision, files; no model, no text."""
