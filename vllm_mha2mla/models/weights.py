"""The work of our models when weights have been loaded, and when adapters are."""

from typing import Any

from vllm.config import VllmConfig

from vllm_mha2mla.attention.projections import LatentSelfAttention


class TellsLayers:
    """A model that tells its latent attention when weights have been loaded."""

    modules: Any

    def prepare_for_adapters(self, vllm_config: VllmConfig) -> None:
        """Have adapters checked when they are loaded, in an engine that loads any."""
        if vllm_config.lora_config is not None:
            from vllm_mha2mla.models.adapters import check_adapters

            check_adapters()

    def process_weights_after_loading(self) -> None:
        """Called by vLLM at the end of loading."""
        for module in self.modules():
            if isinstance(module, LatentSelfAttention):
                module.weights_loaded()
