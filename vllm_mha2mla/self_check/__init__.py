"""The start-up self-check: a layer's steps on the engine's own cache, against float32.

- ``requests.py``: the batches, and the blocks that their rows lie in.
- ``inputs.py``: random queries and rows, of sizes at which a fault shows.
- ``stored.py``: the rows that a kernel has left in the cache.
- ``reference.py``: the layer in float32, and the bounds of errors.
- ``check.py``: one layer's check.

It knows nothing of vLLM; ``attention/self_check.py`` runs it when the engine has bound its cache.
"""
