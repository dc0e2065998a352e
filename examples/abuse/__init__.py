"""The parts of ``examples/abuse_check.py``.

``plan`` makes the requests, ``client`` sends one, ``storm`` sends many at once. ``answers`` judges
an answer by itself, ``scores`` against a quiet run, ``watch`` judges the server. ``rounds`` tells
the story of a ``run``, ``report`` writes it down.
"""
