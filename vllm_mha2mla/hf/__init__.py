"""Converted models in transformers: the reference for the engine, and what healing trains."""
