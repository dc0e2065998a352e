"""Coded cache rows: a few bits for every number of a latent row.

A converted layer may store its rows ``y = [z ; u]`` (latent, rotary columns) rounded to few bits:

- ``codebooks.py``: the levels that a number is rounded to.
- ``row_code.py``: which column has how many bits, and what of a row is known beforehand.
- ``rounding.py``: rows as they come out of the cache: the definition, which gradients pass.
- ``packing.py``: rows as bytes, in the order in which every kernel stores them.
"""
