"""The parts of ``coded_latents.py``."""
