"""The parts of ``examples/gpu_check.py``, one file each, and what they share."""
