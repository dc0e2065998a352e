"""The refusal of every converted model, in a vLLM that this package does not work with."""

from collections.abc import Iterable

from vllm.config import VllmConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.model_executor.models.registry import ModelRegistry

from vllm_mha2mla.errors import UnsupportedEngineError

# vLLM looks at a class before it asks the hook. Every release has this one, which would not take a
# converted checkpoint's weights either.
STAND_IN = "vllm.model_executor.models.llama:LlamaForCausalLM"


def register_refusal(architectures: Iterable[str], reason: str) -> None:
    """Make vLLM refuse our architectures in one line, and leave all others alone.

    Args:
        architectures: names in a converted ``config.json``.
        reason: the line, with the way out.
    """

    class Refused(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_config(vllm_config: VllmConfig) -> None:
            raise UnsupportedEngineError(reason)

    for architecture in architectures:
        ModelRegistry.register_model(architecture, STAND_IN)
        MODELS_CONFIG_MAP[architecture] = Refused
