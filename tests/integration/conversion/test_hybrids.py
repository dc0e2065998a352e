"""Models some of whose layers slide over a window: these stay, and the others are converted.

Every text is longer than the window.
"""

import pytest
import torch

from conversion.checkpoint.inspection import inspect
from tests.support.convert import convert_tiny, windows
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_families import HYBRIDS, S
from vllm_mha2mla.config import latent_widths


def logits(model):
    with torch.no_grad():
        return model(windows()).logits.float()


def save(name, folder):
    original = HYBRIDS[name].original()
    original.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return original


@pytest.mark.parametrize("name", HYBRIDS)
def test_nothing_truncated_is_the_original(tmp_path, name):
    original = save(name, tmp_path / "source")
    converted = convert_tiny(
        tmp_path / "source", tmp_path / "out", cache_fraction=1, bits=16, refit=False
    )
    expected = logits(original)
    assert float(expected.std()) > 0.3
    wide = HYBRIDS[name].original(sliding_window=1024)
    assert float((logits(wide) - expected).abs().max()) > 1e-2
    # Factors are multiplied in another order: float32 rounding.
    torch.testing.assert_close(logits(converted), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_quarter_is_near_and_counted_in_the_converted_layers(tmp_path, name):
    original = save(name, tmp_path / "source")
    # Half the steps that the refinement has in other tests are enough to see kept layers in it.
    more = {"refine_steps": 4, "refine_window": 128} if name == "Qwen2" else {}
    converted = convert_tiny(tmp_path / "source", tmp_path / "out", cache_fraction=0.25, **more)
    config = converted.config
    kept = [widths.kept for widths in latent_widths(config)]
    assert kept == [kind == S for kind in config.layer_types]
    own = dict(original.named_parameters())
    for index, stays in enumerate(kept):
        name = f"model.layers.{index}.self_attn.v_proj.weight"
        if stays:
            assert converted.state_dict()[name].equal(own[name])
    expected = logits(original).log_softmax(-1)
    change = expected - logits(converted).log_softmax(-1)
    # A model that says nothing of its original diverges by more than a nat.
    assert 0 < float((expected.exp() * change).sum(-1).mean()) < 0.3

    found = inspect(tmp_path / "out")
    latent = kept.count(False)
    row = 2 * 2 * 32 * 2  # keys and values of two heads, in 16 bits
    assert found.baseline_bytes_per_token == latent * row
    assert found.cache_bytes_per_token == latent * row / 4
    assert found.kept_layers == [index for index, stays in enumerate(kept) if stays]
