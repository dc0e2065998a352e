"""Latent attention inside vLLM: the layer, its backend and the cache it asks the engine for."""
