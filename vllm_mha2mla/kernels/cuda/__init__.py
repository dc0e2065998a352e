"""Latent attention on NVIDIA GPUs: Triton kernels, and vLLM's FlashAttention where it is faster."""
