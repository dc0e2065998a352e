"""Multi-head latent attention for converted models: in transformers and in vLLM.

Importing this package makes ``AutoConfig`` and ``AutoModelForCausalLM`` know the converted
families; :func:`register` (vLLM calls it through its plugin entry point) does the same for the
engine. Neither imports vLLM.
"""

import logging

from vllm_mha2mla.plugin import register
from vllm_mha2mla.version import __version__
from vllm_mha2mla.versions import TRANSFORMERS

__all__ = ["__version__", "register"]

_refusal = TRANSFORMERS.refusal(TRANSFORMERS.installed)
if _refusal is None:
    from vllm_mha2mla.hf.registration import register_with_transformers

    register_with_transformers()
else:  # No error: vLLM imports this package in every process, for other models too.
    logging.getLogger("vllm.mha2mla").warning("mha2mla: converted models are unknown: %s", _refusal)
