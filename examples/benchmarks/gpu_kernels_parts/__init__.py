"""Parts of ``gpu_kernels.py``: loads, calls, checks, timings, the sweep over tiles."""
