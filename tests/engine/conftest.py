from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion.checkpoint.loading import load_converted, source_model
from conversion.source import SourceCheckpoint, open_source
from conversion.text.documents import builtin_text
from tests.support import conversion_cache
from tests.support.engine import DEMO, PROMPT_LENGTHS, Greedy, greedy
from tests.support.tiny_converted import save_tiny_converted
from tests.support.tiny_engine import LENGTHS, NEW_TOKENS, random_prompts

TEXT_CHARACTERS = 20_000  # enough for all prompts
# Past the headline the text begins with.
FIRST_PROMPT = 50
CONVERSIONS = {"full_width": "1.0", "half_cache": "0.5"}  # share of the original's cache


HERE = Path(__file__).parent
NO_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for test in items:
        if HERE in test.path.parents:
            test.add_marker(pytest.mark.engine)
            test.add_marker(NO_VLLM)


@pytest.fixture(scope="session")
def source() -> SourceCheckpoint:
    return open_source(DEMO)


@pytest.fixture(scope="session")
def prompts(source) -> list[list[int]]:
    """Consecutive pieces of text that calibration has not seen, one of each length."""
    ids = source.tokenizer()(builtin_text("held-out")[:TEXT_CHARACTERS])["input_ids"]
    chosen, start = [], FIRST_PROMPT
    for length in PROMPT_LENGTHS:
        chosen.append(ids[start : start + length])
        start += length
    return chosen


@pytest.fixture(scope="session")
def original(source) -> Any:
    """The unconverted model in transformers, float32."""
    return source_model(source, torch.float32)


@pytest.fixture(scope="session")
def conversions(request) -> Iterator[dict[str, "Future[Path]"]]:
    """Converted float32 checkpoints that tests ask for, by fixture, made or found side by side."""
    # Any other would take a core from a server that has to start in time.
    asked = {name for test in request.session.items for name in test.fixturenames}
    with ThreadPoolExecutor() as pool:
        yield {
            name: pool.submit(conversion_cache.converted, name, fraction)
            for name, fraction in CONVERSIONS.items()
            if name in asked
        }


@pytest.fixture(scope="session")
def full_width(conversions) -> Path:
    """A converted checkpoint that has lost nothing."""
    return conversions["full_width"].result()


@pytest.fixture(scope="session")
def half_cache(conversions) -> Path:
    """A converted checkpoint with half the original's cache."""
    return conversions["half_cache"].result()


@pytest.fixture(scope="session")
def half_cache_model(half_cache) -> Any:
    """The same checkpoint in transformers."""
    return load_converted(half_cache, torch.float32)[0]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Random weights, biases everywhere, another width in every layer (one without RoPE)."""
    return save_tiny_converted(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_query_checkpoint(tmp_path_factory) -> Path:
    """The same with factorised queries."""
    return save_tiny_converted(tmp_path_factory.mktemp("tiny-query"), q_lora_rank=20)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint) -> Any:
    return load_converted(tiny_checkpoint, torch.float32)[0]


@pytest.fixture(scope="session")
def tiny_prompts() -> list[list[int]]:
    return random_prompts(LENGTHS)


@pytest.fixture(scope="session")
def tiny_references(tiny_model, tiny_prompts) -> list[Greedy]:
    return [greedy(tiny_model, prompt, NEW_TOKENS) for prompt in tiny_prompts]
