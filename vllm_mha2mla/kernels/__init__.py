"""Latent attention over a paged cache: the two functions every kernel implements.

A kernel is one module with ``write_latents`` and ``latent_attention`` of the signatures in
``reference.py``, which it is tested against.
"""

from vllm_mha2mla.kernels.reference import latent_attention, write_latents

__all__ = ["latent_attention", "write_latents"]
