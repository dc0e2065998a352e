"""A KV connector keeps a converted model's cache, and another engine reads it."""

import torch

from conversion.checkpoint.loading import load_converted
from tests.support.engine import assert_same_greedy, greedy, run_engines
from tests.support.tiny_engine import NEW_TOKENS, random_prompts, tiny_engine

BLOCK = 16
# No whole number of blocks, because the connector looks for those before the last token.
LENGTHS = (40, 100)


def test_kept_by_one_engine_and_read_by_the_next(tiny_checkpoint, tmp_path):
    prompts = random_prompts(LENGTHS)
    specification = tiny_engine(
        tiny_checkpoint,
        prompts,
        BLOCK,
        enable_prefix_caching=False,
        kv_transfer_config={
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
        },
    )
    first, second = run_engines(specification, specification)
    model = load_converted(tiny_checkpoint, torch.float32)[0]
    layers = model.config.num_hidden_layers
    assert len(list(tmp_path.rglob("*.safetensors"))) == layers * len(prompts)
    references = [greedy(model, prompt, NEW_TOKENS) for prompt in prompts]
    for result, cached in ((first, [0, 0]), (second, [32, 96])):
        outputs = result["steps"][0]["outputs"]
        assert [output["cached"] for output in outputs] == cached
        assert_same_greedy(outputs, references)
