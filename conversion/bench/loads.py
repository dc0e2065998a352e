"""The loads of a sweep, made from the options of the command line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from conversion.errors import UsageError


@dataclass(frozen=True)
class Load:
    """Random prompts of one length, answered with random text of one length.

    Attributes:
        input_len: tokens per prompt.
        output_len: tokens per answer.
        max_concurrency: largest number of requests at a time.
        num_prompts: number of requests in all.
        seed: seed of the prompts. Every run on one server needs another seed: a repeated prompt
            would come out of the prefix cache.
    """

    input_len: int
    output_len: int
    max_concurrency: int
    num_prompts: int
    seed: int


# Without --num-prompts: enough requests that the batch is full for most of the run.
PROMPTS_PER_PLACE, MIN_PROMPTS = 3, 8
# The server reads random tokens as text, tokenised again: they may become more.
SLACK_TOKENS = 16
# vLLM counts a cache's tokens in whole contexts, and a context in whole blocks: a context that is
# not a multiple of its block would make the cache look smaller. This is the block on CPUs, and a
# multiple of those on GPUs.
BLOCK_TOKENS = 128


def parse_numbers(option: str, texts: Sequence[str]) -> list[int]:
    """Parse the numbers of a repeatable, comma-separated option, each once.

    Raises:
        UsageError: a part is not a positive whole number.
    """
    parts = [part.strip() for text in texts for part in text.split(",")]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"{option} {','.join(texts)}: give positive whole numbers, such as 256,2048"
        )
    return list(dict.fromkeys(int(part) for part in parts))


def size_in_bytes(text: str) -> int:
    """The bytes that ``--kv-memory`` names.

    Raises:
        UsageError: not a size.
    """
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size <= 0:
        raise UsageError(f"--kv-memory {text}: give a size such as 64MiB or 2GiB")
    return size


def make_loads(
    input_lens: Sequence[int],
    output_len: int,
    concurrencies: Sequence[int],
    num_prompts: int | None,
) -> tuple[Load, ...]:
    """Make a load of every length at the first concurrency, and the reverse."""
    places = [(length, concurrencies[0]) for length in input_lens]
    places += [(input_lens[0], concurrency) for concurrency in concurrencies[1:]]
    return tuple(
        Load(
            input_len=length,
            output_len=output_len,
            max_concurrency=concurrency,
            num_prompts=num_prompts or max(MIN_PROMPTS, PROMPTS_PER_PLACE * concurrency),
            seed=0,
        )
        for length, concurrency in places
    )


def max_model_len(loads: Sequence[Load], limit: int) -> int:
    """Work out the context length that both servers are started with.

    Args:
        loads: all loads of the sweep.
        limit: the longest context that the models take.

    Raises:
        UsageError: a load is longer than that.
    """
    longest = max(load.input_len + load.output_len for load in loads)
    if longest > limit:
        raise UsageError(
            f"prompt and answer have up to {longest} tokens, the model takes {limit}; "
            "lower --input-len or --output-len"
        )
    blocks = math.ceil((longest + SLACK_TOKENS) / BLOCK_TOKENS)
    return min(blocks * BLOCK_TOKENS, limit)


def check_cache(kv_memory: int, context: int, config: Any, itemsize: int) -> None:
    """Refuse a cache that holds less than one whole context: vLLM would not start.

    Args:
        kv_memory: size of the cache in bytes.
        context: length of the context in tokens.
        config: the original's config; its cache is the larger one.
        itemsize: bytes per number in the cache.

    Raises:
        UsageError: the cache is too small.
    """
    numbers = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    block = BLOCK_TOKENS * numbers * itemsize
    needed = math.ceil(context / BLOCK_TOKENS) * block
    if kv_memory < needed:
        raise UsageError(
            f"--kv-memory: {kv_memory // block * BLOCK_TOKENS} tokens of the original fit, a "
            f"request has up to {context}; give at least {math.ceil(needed / 2**20)}MiB"
        )
