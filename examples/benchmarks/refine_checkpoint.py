"""Measure how much perplexity a refinement of a converted checkpoint wins back.

    python examples/benchmarks/refine_checkpoint.py ./converted --baseline ./llama \
        --calibration text.txt --text held-out.txt --steps 300

`mha2mla convert --refine-steps N` refines at the end of a conversion and writes the result. This
script starts from a checkpoint that was converted without, so that one conversion serves several
refinements. It prints the perplexity before and after and the time taken, and writes nothing.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from rich.console import Console

from conversion.checkpoint.loading import load_converted, load_source
from conversion.evaluation.perplexity import perplexity
from conversion.healing.refine import refine, refinement_windows
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from conversion.text.documents import read_text
from conversion.text.windows import evaluation_windows


def main() -> None:
    """Measure, refine, measure again."""
    arguments = parse()
    source = open_source(arguments.baseline)
    model, tokenizer = load_converted(arguments.checkpoint, torch.float32)
    windows = evaluation_windows(
        tokenizer, read_text(arguments.text, tokenizer), 1024, arguments.windows
    )
    progress = Progress(Console(stderr=True))
    original = perplexity(
        load_source(arguments.baseline, torch.float32)[0], windows, progress, "Measuring"
    )
    before = perplexity(model, windows, progress, "Measuring")
    recipe = Recipe(
        calibration=[str(path) for path in arguments.calibration],
        refine_steps=arguments.steps,
        **({} if arguments.lr is None else {"refine_lr": arguments.lr}),
    )
    ids = refinement_windows(source, arguments.calibration, recipe)
    family = source.family
    layers = [
        {name: tensor.detach() for name, tensor in family.attention(layer).state_dict().items()}
        for layer in family.layers(model)
    ]
    started = time.monotonic()
    refined = refine(source, model.config, layers, ids, recipe, torch.device("cpu"), progress)
    seconds = time.monotonic() - started
    for layer, tensors in zip(family.layers(model), refined, strict=True):
        family.attention(layer).load_state_dict(tensors)
    after = perplexity(model, windows, progress, "Measuring")
    print(
        f"{arguments.checkpoint.name}: original {original:.3f}, converted {before:.3f} "
        f"(ratio {before / original:.4f}), after {arguments.steps} steps of {ids.shape[1]} tokens "
        f"in {seconds:.0f} s with {torch.get_num_threads()} threads: {after:.3f} "
        f"(ratio {after / original:.4f}, excess loss {math.log(after / original):.4f})"
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--calibration", type=Path, action="append", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    main()
