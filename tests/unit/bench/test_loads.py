"""Loads of a sweep: numbers, sizes, context, and a cache that holds a request."""

import pytest
from transformers import LlamaConfig

from conversion.bench.loads import (
    check_cache,
    make_loads,
    max_model_len,
    parse_numbers,
    size_in_bytes,
)
from conversion.errors import UsageError


def test_sweep_goes_through_the_first_point():
    loads = make_loads([256, 2048], 64, [16, 1], None)
    assert [(load.input_len, load.max_concurrency) for load in loads] == [
        (256, 16),
        (2048, 16),
        (256, 1),
    ]
    # Enough that the batch is full most of the time, and never a handful.
    assert [load.num_prompts for load in loads] == [48, 48, 8]
    assert {load.num_prompts for load in make_loads([256], 64, [16], 5)} == {5}


def test_numbers_are_repeatable_and_comma_separated():
    assert parse_numbers("--input-len", ["256, 2048", "8192", "256"]) == [256, 2048, 8192]


@pytest.mark.parametrize("text", ["", "0", "-4", "many", "16,,4", "1.5"])
def test_other_numbers_are_refused(text):
    with pytest.raises(UsageError, match="--max-concurrency"):
        parse_numbers("--max-concurrency", [text])


def test_context_is_whole_blocks_within_the_models_limit():
    assert max_model_len(make_loads([256], 64, [4], None), 8192) == 384
    assert max_model_len(make_loads([256], 112, [4], None), 8192) == 384
    assert max_model_len(make_loads([256], 113, [4], None), 8192) == 512
    assert max_model_len(make_loads([8128], 64, [4], None), 8192) == 8192
    with pytest.raises(UsageError, match="8193"):
        max_model_len(make_loads([8129], 64, [4], None), 8192)


def test_a_cache_too_small_for_one_request_is_refused_before_the_start():
    config = LlamaConfig(num_hidden_layers=30, num_key_value_heads=3, head_dim=64)
    # vLLM counted 2,816 tokens of this model in 64 MiB of bfloat16.
    check_cache(1 << 26, 2816, config, 2)
    with pytest.raises(UsageError, match=r"2816 tokens .* 2944; give at least 65MiB"):
        check_cache(1 << 26, 2944, config, 2)
    check_cache(65 << 20, 2944, config, 2)


def test_sizes():
    assert size_in_bytes("64MiB") == size_in_bytes("67108864") == 1 << 26
    assert size_in_bytes("2GiB") == 2 << 30
    for text in ("0", "-1MiB", "much"):
        with pytest.raises(UsageError, match="--kv-memory"):
            size_in_bytes(text)
