"""Losses of healing against plain formulations, float32: tolerances are a few roundings."""

import pytest
import torch

from conversion.healing.losses import divergence, hidden_error, next_token, top_divergence


def logits(seed, positions=7, vocabulary=50):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(positions, vocabulary, generator=generator)


def kl(student, teacher):
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def top(teacher, k):
    log_p, tokens = teacher.log_softmax(-1).topk(k)
    return tokens, log_p, 1 - log_p.exp().sum(-1)


def test_divergence_is_that_of_the_definition():
    student, teacher = logits(0), logits(1)
    # How float32 rounds and sums depends on the processor: a few times 6e-8.
    found = divergence(student, teacher).double()
    torch.testing.assert_close(found, kl(student, teacher), rtol=1e-6, atol=0)
    assert divergence(teacher, teacher) == 0


def test_top_divergence_of_all_but_one_token_is_the_whole():
    # One token left: it is the rest.
    student, teacher = logits(0), logits(1)
    found = top_divergence(student, *top(teacher, 49))
    torch.testing.assert_close(found.double(), kl(student, teacher), rtol=1e-4, atol=1e-5)


def test_top_divergence_is_that_of_the_grouped_distributions():
    student, teacher = logits(0), logits(1)
    tokens, log_p, rest = top(teacher, 5)
    q = student.double().softmax(-1)
    expected = 0.0
    for row in range(len(student)):
        kept = tokens[row].tolist()
        q_rest = sum(float(q[row, t]) for t in range(50) if t not in kept)
        p_rest = float(rest[row])
        expected += p_rest * torch.tensor(p_rest / q_rest).log()
        for t, log in zip(kept, log_p[row].tolist(), strict=True):
            expected += torch.tensor(log).exp() * (log - q[row, t].log())
    found = top_divergence(student, tokens, log_p, rest)
    assert float(found) == pytest.approx(float(expected) / 7, rel=1e-4)
    assert found < divergence(student, teacher)


def test_top_divergence_has_finite_gradients_where_nothing_is_left():
    student = torch.full((1, 4), -100.0)
    student[0, 0] = 100.0
    student.requires_grad_()
    loss = top_divergence(
        student, torch.tensor([[0, 1]]), torch.tensor([[0.0, -30.0]]), torch.zeros(1)
    )
    loss.backward()
    assert student.grad.isfinite().all()


def test_next_token_is_the_mean_negative_log_likelihood():
    following = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    expected = -logits(0).double().softmax(-1)[torch.arange(7), following].log().mean()
    torch.testing.assert_close(next_token(logits(0), following).double(), expected)


def test_hidden_error_is_relative_to_each_token():
    # Of one layer the large token is right and the small one half off, (3 - 2)^2 / 2^2; the other
    # layer is right.
    teacher = [torch.tensor([[[1e3, 1e3], [2.0, 2.0]]]), torch.ones(1, 2, 2)]
    student = [torch.tensor([[[1e3, 1e3], [3.0, 3.0]]]), torch.ones(1, 2, 2)]
    assert float(hidden_error(student, teacher)) == pytest.approx(0.25 / 2 / 2)
