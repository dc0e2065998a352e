"""Every family, converted by its source's own statistics, against transformers."""

import pytest
import torch

from tests.support.convert import convert_tiny, windows
from tests.support.ropes import linear, llama3, yarn
from tests.support.tiny import VARIANTS, tiny_tokenizer
from tests.support.tiny_families import FAMILIES


def save(name, folder, **changes):
    original = FAMILIES[name].original(**changes)
    original.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return original


def logits(model):
    with torch.no_grad():
        return model(windows()).logits.float()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_truncated_is_the_original(tmp_path, name, variant):
    heads, kv_heads = VARIANTS[variant]
    changes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    original = save(name, tmp_path / "source", **changes)
    converted = convert_tiny(
        tmp_path / "source", tmp_path / "out", cache_fraction=1, bits=16, refit=False
    )
    expected = logits(original)
    assert float(expected.std()) > 0.3
    # Factors are multiplied in another order: float32 rounding.
    torch.testing.assert_close(logits(converted), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("Qwen2", yarn()),
        # Its factor of cosine and sine is one of the normed queries and keys.
        ("Qwen3", yarn()),
        # A factor of those layers that turn, and of no others.
        ("SmolLM3", yarn()),
        ("Cohere", linear()),
        ("Granite", llama3()),
    ],
)
def test_scaled_rope_is_the_originals(tmp_path, name, rope):
    original = save(name, tmp_path / "source", rope_parameters=rope)
    plain = FAMILIES[name].original()
    expected = logits(original)
    assert float((expected - logits(plain)).abs().max()) > 1e-2
    converted = convert_tiny(
        tmp_path / "source", tmp_path / "out", cache_fraction=1, bits=16, refit=False
    )
    torch.testing.assert_close(logits(converted), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_more_bytes_lose_less(tmp_path, name):
    original = save(name, tmp_path / "source")
    expected = logits(original).log_softmax(-1)
    losses = []
    for number, (fraction, bits) in enumerate([(0.5, 16), (0.15, "auto"), (0.3, "auto")]):
        converted = convert_tiny(
            tmp_path / "source", tmp_path / f"out{number}", cache_fraction=fraction, bits=bits
        )
        change = expected - logits(converted).log_softmax(-1)
        losses.append(float((expected.exp() * change).sum(-1).mean()))
    half, few, more = losses
    # A model that says nothing of its original diverges by more than a nat.
    assert 0 < more < few < 0.5
    assert 0 < half < 0.5
