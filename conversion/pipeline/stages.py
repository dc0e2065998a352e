"""The shares of a conversion's stages in its time, for the progress."""

from conversion.recipes.recipe import Recipe


def stage_shares(recipe: Recipe) -> dict[str, float]:
    """Processor time of every stage of a conversion, up to a common factor.

    Measured on SmolLM2-135M with the default recipe, per layer.
    """
    text = recipe.calibration_tokens / 10240
    coded = recipe.row_bits is not None
    converting = 4.5 if coded else 4.0
    shares = {
        "Converting layers": converting * recipe.text_tokens / 40960 if recipe.refits else 0.5
    }
    if coded or recipe.spreads or recipe.weighs_tokens:
        shares["Measuring attention"] = 2.3 * text
        shares["Measuring what layers lose"] = 2.6 if recipe.spreads else 0.6
    else:
        shares["Converting layers"] += 2.3 * text
    if coded:
        shares["Measuring what layers lose"] = 2.6 + 4.0 * recipe.held_out / 8192
    elif recipe.split == "auto" and recipe.kv_lora_rank is None:
        shares["Choosing widths"] = 1.1
    if recipe.refine_steps:
        shares["Refining"] = 0.09 * recipe.refine_steps
    return shares
