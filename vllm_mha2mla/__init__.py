"""Multi-head latent attention for converted models: in transformers and in vLLM.

Importing this package makes ``AutoConfig`` and ``AutoModelForCausalLM`` know the converted
families; :func:`register` (vLLM calls it through its plugin entry point) does the same for the
engine. Neither imports vLLM.
"""

from vllm_mha2mla.hf.registration import register_with_transformers
from vllm_mha2mla.plugin import register
from vllm_mha2mla.version import __version__

__all__ = ["__version__", "register"]

register_with_transformers()
