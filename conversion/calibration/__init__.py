"""Calibration: the text, and what the converter measures of a layer on it."""
