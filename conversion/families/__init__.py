"""Source model families: one file each, one line here that registers it."""

from typing import Any

from conversion.families.attention import AttentionWeights
from conversion.families.family import Family
from conversion.families.llama import LLAMA

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA,)}


def family_of(config: Any) -> Family:
    """The family of a model of ours, original or converted, by its config.

    Raises:
        KeyError: a model of no registered family.
    """
    converted: dict[str, Family] = {f.config_class.model_type: f for f in FAMILIES.values()}
    return (FAMILIES | converted)[config.model_type]


__all__ = ["FAMILIES", "AttentionWeights", "Family", "family_of"]
