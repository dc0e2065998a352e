"""Latent attention on NVIDIA GPUs: Triton kernels, and vLLM's FlashAttention where it is faster.

``rows.py`` alone knows how a cache row is stored. ``rotate.py`` writes rows, ``attention.py`` reads
them, ``combine.py`` joins what the shares of a context gave, and ``tuning.py`` says how large the
tiles are on which GPU.
"""
