"""A KV connector keeps a converted model's cache, and another engine reads it."""

import pytest
import torch

from conversion.checkpoint.loading import load_converted
from tests.support.engine import assert_same_greedy, greedy, run_engines
from tests.support.tiny_converted import save_tiny_coded
from tests.support.tiny_engine import NEW_TOKENS, random_prompts, tiny_engine

pytestmark = pytest.mark.slow

BLOCK = 16
# No whole number of blocks, because the connector looks for those before the last token.
LENGTHS = (40, 100)


def engine(checkpoint, prompts, folder):
    made = tiny_engine(
        checkpoint,
        prompts,
        BLOCK,
        kv_transfer_config={
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(folder)},
        },
    )
    return made | {"steps": made["steps"] * 2}


@pytest.mark.parametrize("rows", ["plain", "coded"])
def test_kept_by_one_engine_and_read_by_the_next(rows, tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint if rows == "plain" else save_tiny_coded(tmp_path / "coded")
    prompts = random_prompts(LENGTHS)
    specification = engine(checkpoint, prompts, tmp_path / "kept")
    first, second = run_engines(specification, specification)
    model = load_converted(checkpoint, torch.float32)[0]
    layers = model.config.num_hidden_layers
    assert len(list(tmp_path.rglob("kept/*/*.safetensors"))) == layers * len(prompts)
    fresh, hit = (step["outputs"] for step in first["steps"])
    read = second["steps"][0]["outputs"]
    assert [output["cached"] for output in fresh] == [0, 0]
    # As blocks that never left the engine: another order of sums could end in another code.
    assert read == hit
    assert [output["cached"] for output in read] == [32, 96]
    if rows == "plain":
        assert_same_greedy(read, [greedy(model, prompt, NEW_TOKENS) for prompt in prompts])
