"""Original and converted in vLLM, driven by its own benchmark: ``mha2mla bench``."""
