"""The judgement of tokens against a quiet server."""

import dataclasses

import pytest


@pytest.fixture
def scores(abuse):
    return abuse("scores")


@pytest.fixture
def tolerance(scores):
    return scores.Tolerance(token=1e-3, answer=3e-4)


@pytest.fixture
def claim(scores, case, outcome):
    (found,) = scores.claims(case(), outcome())
    return found


@pytest.fixture
def quiet(scores):
    """The same log-probabilities, each the best in its place."""
    values = [-3.0, -1.0, -2.0, 0.0]
    return scores.Quiet(values, list(values), [2, 5, 6, 7])


def test_the_same_tokens_hold(scores, tolerance, claim, quiet):
    difference = scores.compare(claim, quiet)
    assert (difference.tokens, difference.largest, difference.lead) == (3, 0.0, 0.0)
    assert difference.within(tolerance)


def test_another_log_probability_is_found_at_its_place(scores, tolerance, claim, quiet):
    wrong = dataclasses.replace(claim, logprobs=[-1.0, -2.002, 0.0])
    difference = scores.compare(wrong, quiet)
    assert difference.largest == pytest.approx(0.002)
    assert difference.at == 3
    assert not difference.within(tolerance)


def test_a_token_that_was_not_the_first_choice_is_found(scores, tolerance, claim, quiet):
    ahead = dataclasses.replace(quiet, first_logprobs=[-3.0, -1.0, -1.5, 0.0])
    difference = scores.compare(claim, ahead)
    assert (difference.lead, difference.lead_at) == (0.5, 3)
    assert not difference.within(tolerance)


def test_a_near_tie_is_forgiven(scores, tolerance, claim, quiet):
    near = dataclasses.replace(quiet, first_logprobs=[-3.0, -1.0, -2.0 + 1.9e-3, 0.0])
    assert scores.compare(claim, near).within(tolerance)
    beyond = dataclasses.replace(quiet, first_logprobs=[-3.0, -1.0, -2.0 + 2.1e-3, 0.0])
    assert not scores.compare(claim, beyond).within(tolerance)


def test_a_sampled_token_need_not_be_the_first_choice(scores, tolerance, case, outcome, quiet):
    (claim,) = scores.claims(case({"temperature": 1.0}), outcome())
    ahead = dataclasses.replace(quiet, first_logprobs=[-3.0, -0.1, -0.1, 0.0])
    assert scores.compare(claim, ahead).within(tolerance)


def test_nan_is_far_from_everything(scores, case, outcome, quiet):
    (claim,) = scores.claims(case(), outcome(logprobs=[-1.0, None, 0.0]))
    assert scores.compare(claim, quiet).largest == float("inf")


def test_the_prompt_is_compared_where_it_was_scored(scores, case, outcome, quiet):
    answer = outcome()
    answer.prompt_logprobs = [None, -3.5]
    (claim,) = scores.claims(case({"prompt_logprobs": 0}), answer)
    difference = scores.compare(claim, quiet)
    assert (difference.tokens, difference.largest, difference.at) == (4, 0.5, 1)
    ahead = dataclasses.replace(quiet, first_logprobs=[-0.1, -1.0, -2.0, 0.0])
    assert scores.compare(claim, ahead).lead == 0.0


def test_a_part_of_an_answer_is_compared(scores, case, outcome, quiet):
    (claim,) = scores.claims(case(), outcome(tokens=[5], logprobs=[-1.0], finish=None))
    assert scores.compare(claim, quiet).tokens == 1


def test_an_answer_without_log_probabilities_claims_nothing(scores, case, outcome):
    assert scores.claims(case(scored=False), outcome()) == []
    assert scores.claims(case(), outcome(tokens=[], logprobs=[])) == []


def test_many_small_differences_are_found_by_their_mean(scores, tolerance, case, outcome):
    tokens = list(range(5, 25))
    values = [-1.0] * len(tokens)
    quiet = scores.Quiet([-3.0, *values], [-3.0, *values], [2, *tokens])
    for off, holds in ((2e-4, True), (5e-4, False)):
        answer = outcome(tokens=tokens, logprobs=[x + off for x in values])
        (claim,) = scores.claims(case({"max_tokens": len(tokens)}), answer)
        difference = scores.compare(claim, quiet)
        assert difference.rms == pytest.approx(off)
        assert difference.within(tolerance) is holds
