"""Source model families: one file each, one line here that registers it."""

from typing import Any

from conversion.families.attention import AttentionWeights
from conversion.families.cohere import COHERE
from conversion.families.family import Family
from conversion.families.gemma import GEMMA
from conversion.families.gemma3 import GEMMA3
from conversion.families.granite import GRANITE
from conversion.families.llama import LLAMA
from conversion.families.ministral import MINISTRAL
from conversion.families.mistral import MISTRAL
from conversion.families.mixtral import MIXTRAL
from conversion.families.olmo2 import OLMO2
from conversion.families.olmo3 import OLMO3
from conversion.families.olmoe import OLMOE
from conversion.families.phi3 import PHI3
from conversion.families.qwen2 import QWEN2
from conversion.families.qwen3 import QWEN3
from conversion.families.qwen3_moe import QWEN3_MOE
from conversion.families.smollm3 import SMOLLM3

REGISTERED = (
    LLAMA,
    COHERE,
    GEMMA,
    GEMMA3,
    GRANITE,
    MINISTRAL,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    OLMO3,
    OLMOE,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    SMOLLM3,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in REGISTERED}


def family_of(config: Any) -> Family:
    """The family of a model of ours, original or converted, by its config.

    Raises:
        KeyError: a model of no registered family.
    """
    converted: dict[str, Family] = {f.config_class.model_type: f for f in FAMILIES.values()}
    return (FAMILIES | converted)[config.model_type]


__all__ = ["FAMILIES", "AttentionWeights", "Family", "family_of"]
