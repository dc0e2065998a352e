"""Simulate a cache of latents in few bits, and measure its perplexity.

    python examples/benchmarks/coded_latents.py demo:smollm2-135m --fraction 0.16 \
        --calibration wikitext2-train-head.txt --text wikitext2-valid.txt --windows 4

This is a simulation in transformers: rows are rounded as a coded cache would hold them, and all
else is computed as usual. Nothing of it is served yet. Nothing is trained.

A converted layer caches one row a token, ``y = [c ; k_rope]`` (latent, rotary columns before RoPE
turns them). Wide rows in few bits lose less than narrow rows in 16 bits. The steps, a file of
``coded_latents_parts`` each:

1. ``measure.py``: for every layer, the Fisher metric ``G = E g g^T`` of its rows (``g``: the
   gradient of a drawn label's log-likelihood at a row), their covariance ``C`` and mean ``mu``, and
   what conversions to several ranks and rotary widths cost.
2. ``plan.py``: ``min sum_l c_l^1.5`` over ranks, rotary columns and bits, at the given bytes, with
   ``c_l = truncation_l + sum_j lambda_j D(b_j) / 2`` the predicted cost of layer ``l`` in nats,
   ``lambda_j`` the eigenvalues of ``G^1/2 C G^1/2`` (for rotary columns ``G_jj C_jj``), ``b_j`` the
   bits of component ``j``, 1 to 6, and ``D(b)`` the squared error of a unit Gaussian in ``b`` bits.
3. ``rows.py``: ``y -> mu + A^-1 s Q_b(A (y - mu) / s)``, with ``A`` the basis of these eigenvalues,
   turned at random among components of the same bits, ``s`` the root mean square in 8 bits, for
   the latent and for the rotary columns, and ``Q_b`` the codebooks of ``codebooks.py`` (Lloyd-Max
   for a Gaussian). The first row of a text stays exact and is not counted.
4. ``simulate.py``: every layer is converted, its output refitted on coded rows, and measured.

Bytes are shares of the original's cache in 16 bits, and include the two scales of a row.
"""

import argparse
import tempfile
from pathlib import Path

from coded_latents_parts.plan import LayerPlan, plan
from coded_latents_parts.simulate import coded_converter, measured, simulated
from rich.console import Console

from conversion.pipeline import calibration_text
from conversion.recipes.make import make_recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from conversion.text.documents import read_text
from conversion.text.windows import evaluation_windows

# Bits of one number in the original's cache.
ORIGINAL_BITS = 16


def main() -> None:
    """Measure, plan, convert and print."""
    arguments = parse()
    source = open_source(arguments.source)
    recipe = make_recipe(
        None,
        calibration=[str(path) for path in arguments.calibration],
        calibration_tokens=6144,
        refit_tokens=12288,
        held_out_tokens=2048,
        cache_fraction=0.75,
        ridge=arguments.ridge,
    )
    windows = calibration_text(source, recipe)
    tokenizer = source.tokenizer()
    length = windows.ids.shape[1]
    text = evaluation_windows(
        tokenizer, read_text(arguments.text, tokenizer), length, arguments.windows
    )
    progress = Progress(Console(stderr=True))
    kv_heads, head_dim = source.config.num_key_value_heads, source.config.head_dim
    step = recipe.strategies()[0].step(kv_heads, head_dim)
    full = 2 * kv_heads * head_dim * ORIGINAL_BITS
    with tempfile.TemporaryDirectory() as folder:
        converter = coded_converter(source, recipe, windows, Path(folder))
        found = measured(converter, windows, step, progress)
        choices = [found.choices[index] for index in range(len(found.choices))]
        for fraction in arguments.fraction:
            chosen = plan(choices, fraction * full)
            print_plan(chosen)
            outcome = simulated(converter, windows, chosen, found.token_weights, text, progress)
            bits = sum(layer.row_bits for layer in chosen) / len(chosen)
            print(
                f"{bits / full:.2%} of the bytes, {bits / 8:.1f} bytes a token and layer: "
                f"perplexity {outcome.coded:.3f}, original {outcome.original:.3f}, "
                f"ratio {outcome.ratio:.4f}, KL {outcome.divergence:.4f} ({len(text)} windows)",
                flush=True,
            )


def print_plan(chosen: list[LayerPlan]) -> None:
    """Print widths and mean bits of every layer."""
    print("layer  rank + rotary  bits of the latent, rotary columns")
    for index, layer in enumerate(chosen):
        widths = layer.candidate.widths
        latent, rotary = layer.bits.split((widths.kv_lora_rank, widths.qk_rope_head_dim))
        print(
            f"{index:5d}  {widths.kv_lora_rank:4d} + {widths.qk_rope_head_dim:<6d}  "
            f"{latent.float().mean():.1f}, {rotary.float().mean():.1f}"
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="the original, as for mha2mla convert")
    parser.add_argument(
        "--fraction", type=float, nargs="+", required=True, help="shares of the original's bytes"
    )
    parser.add_argument("--calibration", type=Path, action="append", required=True)
    parser.add_argument("--text", type=Path, required=True, help="to measure perplexity on")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument(
        "--ridge", type=float, default=400.0, help="of the refit, in tokens; more for many bytes"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
