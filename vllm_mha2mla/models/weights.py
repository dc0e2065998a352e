"""The work of our layers after weights have been loaded, or exchanged in a running engine."""

from typing import Any

from vllm_mha2mla.attention.layer import LatentCacheAttention
from vllm_mha2mla.attention.projections import LatentSelfAttention


class TellsLayers:
    """A model that tells its latent attention when weights have changed."""

    modules: Any

    def process_weights_after_loading(self) -> None:
        """Called by vLLM, also after weights have been exchanged in a running engine."""
        for module in self.modules():
            if isinstance(module, LatentSelfAttention):
                module.weights_loaded()
            if isinstance(module, LatentCacheAttention):
                module.weights_changed()
