"""Source model families: one file each, one line here that registers it."""

from conversion.families.family import Family
from conversion.families.llama import LLAMA

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA,)}

__all__ = ["FAMILIES", "Family"]
