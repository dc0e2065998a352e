"""Several recipes over one calibration, each beside the original."""
