"""``mha2mla convert``: a model to a checkpoint with latent attention."""

from math import expm1
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from conversion.commands.options import (
    Device,
    Dtype,
    Offload,
    Output,
    Overwrite,
    Source,
    recipe_options,
)
from conversion.recipes.presets import presets
from conversion.recipes.recipe import Recipe

# Nats per token. At half the cache, SmolLM2-135M-Instruct lost 0.1, and its answers looped three
# times as often as the original's.
SMALL_LOSS = 0.03


@recipe_options(
    Recipe,
    *("cache_fraction", "bits", "kv_lora_rank", "rope_dim", "target", "split", "spread"),
    "held_out_tokens",
    *("refit", "refit_tokens", "refine_steps", "q_lora_rank", "method", "rotary", "latent"),
    *("calibration", "calibration_tokens"),
)
def convert_command(
    source: Source,
    output: Output,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help=f"Read recipe keys from this YAML file or preset ({', '.join(presets())}). "
            "Options given here win over it."
        ),
    ] = None,
    device: Device = "cpu",
    offload: Offload = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    **given: Any,
) -> None:
    """Convert SOURCE to a checkpoint with latent attention in OUTPUT.

    A smaller cache costs quality, the more the fewer its bytes. mha2mla heal gives a
    part back. Measure your model with mha2mla eval, on text like its real input.
    """
    from conversion.checkpoint.inspection import inspect
    from conversion.commands.inspect import inspection_table
    from conversion.pipeline import HELD_OUT_DIVERGENCE, Options, convert
    from conversion.recipes.make import make_recipe
    from conversion.runtime.device import usable_device
    from conversion.runtime.dtypes import dtype_named
    from conversion.runtime.progress import Progress
    from conversion.source import open_source

    chosen = make_recipe(recipe, **given)
    options = Options(
        device=usable_device(device),
        dtype=dtype_named(dtype) if dtype else None,
        overwrite=overwrite,
        offload=offload,
    )
    err = Console(stderr=True)
    if not chosen.calibration:
        err.print(
            "No --calibration text given: using Python's own documentation. Text like the "
            "model's real input gives better checkpoints.",
            soft_wrap=True,
        )
    provenance = convert(open_source(source), output, chosen, options, Progress(err))
    Console().print(inspection_table(inspect(output)))
    for line in cost_lines(provenance.figures.get(HELD_OUT_DIVERGENCE)):
        Console().print(line, soft_wrap=True, highlight=False)


def cost_lines(divergence: float | None) -> list[str]:
    """Say the cost of the cut and the ways out, to a person who decides whether to serve it.

    Args:
        divergence: of the predictions on held-out calibration text, nats per token; ``None``: it
            was not measured.
    """
    if divergence is None:
        return []
    # The divergence from a good model's predictions is about the logarithm of the perplexity's
    # ratio: text is as the original predicts it.
    said = (
        f"On held-out calibration text its predictions lost {divergence:.3f} nats per token, as if "
        f"perplexity were {expm1(max(0.0, divergence)):.1%} higher."
    )
    if divergence < SMALL_LOSS:
        return [said]
    return [
        said,
        "A small chat model that lost this much goes round in circles more often than its "
        "original. Ways out: a larger --cache-fraction, --refine-steps 300, or mha2mla heal.",
    ]
