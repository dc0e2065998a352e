"""Compares original and converted in vLLM, driven by its own benchmark: ``mha2mla bench``.

``compare`` tells the story, ``sides`` takes turns, ``drive`` puts one load on one server. Every
process started here ends with the ``with`` block that started it, whatever ends the block
(``server.running``). After a failure of vLLM its logs stay; nothing else does.
"""
