"""Long inputs in chunks through the cache, against whole windows without one."""

import pytest
import torch

from conversion.evaluation.chunked import greedy, token_losses
from conversion.evaluation.perplexity import perplexity
from conversion.evaluation.positions import bucket_edges, position_figures, position_losses
from conversion.runtime.progress import Progress
from conversion.text.windows import evaluation_windows
from tests.support.tiny import TEXT, tiny_llama, tiny_tokenizer

WINDOW = 1300


@pytest.fixture(scope="module")
def model():
    return tiny_llama(max_position_embeddings=2048)


def windows(count=2):
    return evaluation_windows(tiny_tokenizer(), TEXT, WINDOW, count)


def test_edges_double():
    assert bucket_edges(100) == [0, 100]
    assert bucket_edges(512) == [0, 512]
    assert bucket_edges(513) == [0, 512, 513]
    assert bucket_edges(8192) == [0, 512, 1024, 2048, 4096, 8192]


@pytest.mark.parametrize("chunk", [1, 7, 99, 100, 1000])
def test_chunks_do_not_change_a_loss(model, chunk):
    ids = windows()[0, :101]
    with torch.no_grad():
        expected = -model(ids[None]).logits[0].log_softmax(-1)[range(100), ids[1:]]
    # Float32 rounding of logits up to about 20.
    torch.testing.assert_close(token_losses(model, ids, chunk).float(), expected, atol=1e-3, rtol=0)


def test_buckets_average_to_the_perplexity(model):
    other = tiny_llama(seed=1, max_position_embeddings=2048)
    losses = [position_losses(m, windows(), Progress(), "") for m in (model, other)]
    figures = position_figures("text", windows(), *losses)
    assert [(b.start, b.end, b.tokens) for b in figures.buckets] == [
        (0, 512, 2 * 511),
        (512, 1024, 2 * 512),
        (1024, 1300, 2 * 276),
    ]
    tokens = torch.tensor([bucket.tokens for bucket in figures.buckets])
    for name, whole in (("original", model), ("converted", other)):
        values = torch.tensor([getattr(bucket, name) for bucket in figures.buckets])
        mean = float(((values.log() * tokens).sum() / tokens.sum()).exp())
        assert mean == pytest.approx(perplexity(whole, windows(), Progress(), ""), rel=1e-4)
        # Buckets that differ: a mean alone could not tell them apart.
        assert values.max() > 1.001 * values.min()


def test_greedy_is_generation(model):
    ids = windows()[0, :100]
    expected = model.generate(ids[None], max_new_tokens=20, do_sample=False, pad_token_id=0)
    expected = expected[0, 100:].tolist()
    assert greedy(model, ids, set(), 20, chunk=33) == expected
    stop = expected[12]
    assert greedy(model, ids, {stop}, 20) == expected[: expected.index(stop)]
