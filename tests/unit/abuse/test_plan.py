"""The plan of ``make abuse``: every kind of request, the same one again from the same seed."""

import json
from collections import Counter

import pytest

MANY = 3000


@pytest.fixture
def plan(abuse, material):
    return abuse("plan").Plan(7, material)


def test_seed_and_number_make_the_same_request(abuse, material, plan):
    again, other = abuse("plan").Plan(7, material), abuse("plan").Plan(8, material)
    assert [plan.case(i) for i in (3, 1, 2)] == [again.case(i) for i in (3, 1, 2)]
    assert [plan.case(i) for i in range(5)] != [other.case(i) for i in range(5)]


def test_every_kind_comes_in_its_share(abuse, plan):
    kinds = abuse("plan").KINDS
    counts = Counter(plan.case(number).kind for number in range(MANY))
    assert counts.keys() == kinds.keys()
    total = sum(weight for weight, _ in kinds.values())
    for name, (weight, _) in kinds.items():
        assert counts[name] / MANY == pytest.approx(weight / total, abs=0.03)


def test_only_wrong_requests_are_longer_than_the_longest(material, plan):
    long = 0
    for number in range(MANY):
        case = plan.case(number)
        prompt = case.options.get("prompt")
        if case.refused is False and isinstance(prompt, list):
            assert all(type(token) is int for token in prompt)
            assert 1 <= len(prompt) < material.longest
            whole = len(prompt) + case.options["max_tokens"]
            assert whole <= material.longest or not case.scored
            long += whole == material.longest
    assert long > MANY / 100


def test_lengths_are_of_any_order_of_size(material, plan):
    cases = (plan.case(number) for number in range(MANY))
    lengths = Counter(
        len(case.options["prompt"]).bit_length() for case in cases if case.kind == "greedy"
    )
    assert lengths.keys() >= set(range(1, 12))
    assert min(lengths[bits] for bits in range(1, 11)) > 10


def test_clients_leave_at_any_time(plan):
    leaving = [x for x in map(plan.case, range(MANY)) if x.kind == "cancelled"]
    assert any(case.leaving.halfway for case in leaving)
    assert any(case.leaving.chunks for case in leaving)
    assert any((case.leaving.seconds or 9) < 0.05 for case in leaving)
    assert any((case.leaving.seconds or 0) > 3 for case in leaving)
    assert all(case.streamed for case in leaving if case.leaving.chunks)


def test_wrong_requests_are_wrong_in_many_ways(plan):
    wrong = [case for case in map(plan.case, range(MANY)) if case.kind == "wrong"]
    assert len({case.encoded() for case in wrong}) > 80
    no_json = 0
    for case in wrong:
        try:
            json.loads(case.encoded())
        except (ValueError, RecursionError):
            no_json += 1
            assert case.refused
    assert no_json > 20
    assert any(b"NaN" in case.encoded() for case in wrong)
    assert not any(case.greedy for case in wrong)


def test_a_token_that_a_bias_chose_is_not_called_greedy(plan):
    moved = [case for case in map(plan.case, range(MANY)) if case.kind == "bias or penalty"]
    assert moved
    assert not any(case.greedy for case in moved)
    assert any(case.only for case in moved)
