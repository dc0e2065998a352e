"""Convert a small real model to 27 % of its cache and serve both in vLLM. Run: make demo."""

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from endings import one_line
from openai import DefaultHttpxClient, OpenAI, OpenAIError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conversion.bench.server import Server, serve
from conversion.checkpoint.export import export
from conversion.checkpoint.inspection import inspect
from conversion.evaluation import Comparison, Measurement, measure
from conversion.pipeline import Options, convert, stage_shares
from conversion.recipes.make import make_recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from conversion.text.documents import builtin_text
from vllm_mha2mla.errors import MHA2MLAError

MODEL = "demo:smollm2-135m"
# As the preset quick, so that it takes minutes; the default loses less.
FRACTION = 0.267
RECIPE = make_recipe(Path("quick"), cache_fraction=FRACTION)
# vLLM's smallest cache of the unconverted model, of about as many bytes.
RIVAL = "int4_per_token_head"
FOLDER = Path(__file__).resolve().parent.parent / ".demo"
ORIGINAL = FOLDER / "original"
CONVERTED = FOLDER / "converted"
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue? Answer in one sentence.",
    "Name three animals that live in the sea.",
)
ANSWER_TOKENS = 60
WINDOW, WINDOWS = 1024, 8
CACHE_MIB = 256
DTYPE = "bfloat16"
# Eagerly: for a few questions a quick start is worth more than speed.
SERVE = (
    *("--dtype", DTYPE, "--kv-cache-memory-bytes", f"{CACHE_MIB}M", "--max-model-len", "2048"),
    "--enforce-eager",
)
PLAN = """\
SmolLM2-135M-Instruct, a chat model that comes with a Python package, is converted to latent
attention whose cache takes 27 % of the bytes. Perplexity of both is measured, beside vLLM's 4-bit
cache of the original, then both are served in vLLM and asked the same questions.
"""
NOTE = (
    "* Python's documentation, topics kept out of calibration; other text can lose more. The "
    f"original's {RIVAL} is computed as vLLM does on GPUs; vLLM on CPUs has no such cache."
)

console = Console()


@dataclass(frozen=True)
class Served:
    """A model's answers in vLLM, and the tokens that its cache holds."""

    answers: list[str]
    cache_tokens: int


def prepare(fresh: bool, progress: Progress) -> None:
    """Write the original as a folder that vLLM reads, and the converted one beside it."""
    if fresh or not (ORIGINAL / "config.json").is_file():
        console.print(f"Exporting {MODEL} to {shown(ORIGINAL)}")
        export(open_source(MODEL), ORIGINAL, None, True, progress)
    else:
        console.print(f"Using {shown(ORIGINAL)} of an earlier run")
    if fresh or not is_converted():
        console.print(f"Converting it to {shown(CONVERTED)}, {FRACTION:.1%} of the cache")
        convert(open_source(MODEL), CONVERTED, RECIPE, Options(overwrite=True), progress)
    else:
        console.print(f"Using {shown(CONVERTED)} of an earlier run (ARGS=--fresh converts anew)")


def is_converted() -> bool:
    """Tell if an earlier run left a checkpoint of the same recipe."""
    try:
        return inspect(CONVERTED).recipe == RECIPE.model_dump(exclude_none=True)
    except MHA2MLAError:
        return False


def ask(folder: Path, options: tuple[str, ...], progress: Progress) -> Served:
    """Serve a folder, put the questions to it, stop it."""
    log = FOLDER / f"{folder.name}.log"
    console.print(f"vllm serve {shown(folder)} {' '.join(options)}", soft_wrap=True)
    with progress.task(f"Serving {folder.name}", 1 + len(QUESTIONS)) as advance:
        start = time.monotonic()
        with serve(folder, log, *options) as server:
            console.print(f"  ready after {time.monotonic() - start:.0f} s; asking")
            advance()
            answers = []
            for question in QUESTIONS:
                answers.append(answer(server, question))
                advance()
            return Served(answers, server.cache_tokens)


def answer(server: Server, question: str) -> str:
    """Ask the model and return its greedy answer.

    Raises:
        ServerError: the server died or refused.
    """
    # Without the environment's proxy: the server is on this machine.
    http = DefaultHttpxClient(trust_env=False)
    try:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http) as client:
            reply = client.chat.completions.create(
                model=client.models.list().data[0].id,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=ANSWER_TOKENS,
            )
    except OpenAIError as error:
        raise server.error(f"the server did not answer ({error})") from error
    return (reply.choices[0].message.content or "").strip()


def answers_table(original: Served, converted: Served) -> Table:
    """Make the table of both models' answers."""
    table = Table("", "original", "converted", show_lines=True)
    for row in zip(QUESTIONS, original.answers, converted.answers, strict=True):
        table.add_row(*map(Text, row))  # as text: brackets in an answer are no markup
    return table


def figures_table(original: Served, converted: Served, quality: Comparison) -> Table:
    """Make the table of cache, tokens and perplexity of the models."""
    table = Table("", "original", "original, 4 bits*", "converted", caption=NOTE)
    (rival,) = quality.rivals
    cache, text, other = quality.cache, quality.perplexity, rival.perplexity
    assert text is not None
    assert other is not None
    table.add_row(
        "cache bytes per token",
        f"{cache.baseline_bytes_per_token:,}",
        *(f"{one.bytes_per_token:,} ({one.fraction:.1%})" for one in (rival.cache, cache)),
    )
    table.add_row(
        f"tokens in {CACHE_MIB} MiB of cache, as vLLM counts",
        f"{original.cache_tokens:,}",
        "",
        f"{converted.cache_tokens:,}",
    )
    table.add_row(
        f"perplexity on {text.windows} x {text.window} tokens, in float32*",
        f"{text.baseline:.2f}",
        *(f"{one.converted:.2f} ({one.ratio:.3f} times)" for one in (other, text)),
    )
    return table


def savings(original: Served, converted: Served, quality: Comparison) -> str:
    """Say in a sentence how much was saved."""
    cache = quality.cache
    saved = cache.baseline_bytes_per_token - cache.bytes_per_token
    times = converted.cache_tokens / original.cache_tokens
    return (
        f"Saved: {saved:,} of {cache.baseline_bytes_per_token:,} bytes per token of context; the "
        f"same memory holds {times:.1f} times the tokens."
    )


def shown(path: Path) -> str:
    """Shorten a path that lies below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def run(fresh: bool) -> None:
    """Convert, measure, serve both models, and print the tables."""
    progress = Progress(console)
    FOLDER.mkdir(exist_ok=True)
    console.print(PLAN)
    # Both servers, and all perplexities, beside the stages of a conversion, as measured.
    shares = {} if is_converted() and not fresh else stage_shares(RECIPE)
    shares |= {"Serving original": 3.0, "Serving converted": 3.0, "Original": 0.5, "Converted": 1.0}
    shares |= {f"Original, {RIVAL}": 0.6}
    with progress.whole("Demo", shares):
        prepare(fresh, progress)
        console.print("Measuring perplexity")
        measurement = Measurement(
            builtin_text("held-out"), WINDOW, WINDOWS, kv_cache_dtypes=(RIVAL,)
        )
        quality = measure(CONVERTED, MODEL, measurement, progress)
        original = ask(ORIGINAL, SERVE, progress)
        converted = ask(CONVERTED, SERVE, progress)
    console.print(answers_table(original, converted))
    console.print(figures_table(original, converted, quality))
    console.print(savings(original, converted, quality))
    console.print(f"Serve it yourself: .venv/bin/vllm serve {shown(CONVERTED)}", soft_wrap=True)


def main() -> None:
    """Parse the command line and end with one line whatever goes wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="export and convert again")
    fresh = parser.parse_args().fresh
    for noisy in ("httpx", "httpx2", "transformers", "gguf"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with one_line():
        run(fresh)


if __name__ == "__main__":
    main()
