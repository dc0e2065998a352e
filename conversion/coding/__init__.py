"""Coded cache rows: the cost of their columns, their bits, and the layer that writes them."""
