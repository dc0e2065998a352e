"""The origin of a converted checkpoint, as it tells it itself."""

from conversion.recipes.recipe import Recipe
from conversion.runtime.versions import versions
from conversion.source import SourceCheckpoint
from conversion.text.windows import Windows
from vllm_mha2mla.config import Provenance, SourceInfo

# Name of the figure that tells what the whole conversion lost.
HELD_OUT_DIVERGENCE = "held_out_divergence"


def provenance_of(source: SourceCheckpoint, recipe: Recipe, windows: Windows) -> Provenance:
    """The origin of a checkpoint that is about to be converted."""
    return Provenance(
        source=SourceInfo(
            name=source.name,
            model_type=source.config.model_type,
            fingerprint=source.fingerprint(),
            num_key_value_heads=source.config.num_key_value_heads,
            head_dim=source.config.head_dim,
        ),
        recipe=recipe.model_dump(exclude_none=True),
        calibration=windows.info,
        versions=versions("torch", "transformers"),
    )
