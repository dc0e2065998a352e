"""Converts with several recipes over one calibration, and measures each beside the original.

A sweep resumes: a recipe whose row is in the results is not run again, as long as original, texts,
dtype and release are the same (``results.Subject``). The folder holds only what the sweep made
itself, and only that is ever deleted (``folder.SweepFolder``).
"""
