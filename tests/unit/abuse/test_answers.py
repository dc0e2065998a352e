"""The judgement of an answer by itself."""

import json

import pytest


@pytest.fixture
def faults(abuse):
    return abuse("answers").faults


def test_a_right_answer_has_no_fault(faults, case, outcome):
    assert faults(case(), outcome()) == []


@pytest.mark.parametrize(
    ("options", "changes", "word"),
    [
        ({}, {"finish": None}, "finish_reason None"),
        ({"max_tokens": 2}, {}, "max_tokens is 2"),
        ({"max_tokens": 9}, {}, "max_tokens is 9"),
        ({"max_tokens": 9, "min_tokens": 4}, {"finish": "stop"}, "min_tokens is 4"),
        ({"stop": ["b"]}, {"finish": "stop"}, "stop string 'b'"),
        ({}, {"logprobs": [-1.0, -2.0]}, "3 tokens with 2"),
        ({}, {"logprobs": [-1.0, float("nan"), -1.0]}, "such as nan"),
        ({}, {"logprobs": [-1.0, None, -1.0]}, "such as None"),
        ({}, {"logprobs": [-1.0, 0.1, -1.0]}, "such as 0.1"),
        ({}, {"logprobs": [-1.0, -9999.0, -1.0]}, "log-probabilities such as"),
        ({"n": 2}, {}, "where 2 were asked for"),
    ],
)
def test_a_fault_is_found(faults, case, outcome, options, changes, word):
    (fault,) = faults(case(options), outcome(**changes))
    assert word in fault


def test_a_token_that_was_not_allowed(faults, case, outcome):
    assert faults(case(only=frozenset([5, 6, 7])), outcome()) == []
    (fault,) = faults(case(only=frozenset([5, 7])), outcome())
    assert "[6]" in fault


def test_wrong_requests_are_refused(faults, case, outcome):
    assert faults(case(refused=True), outcome(400)) == []
    assert faults(case(refused=True), outcome(200))
    assert faults(case(refused=True), outcome(500))
    assert faults(case(refused=True), outcome(0))
    assert faults(case(refused=None), outcome(200)) == []
    assert faults(case(refused=None), outcome(422)) == []
    assert faults(case(refused=None), outcome(500))
    assert faults(case(refused=None), outcome(0))


def test_an_error_is_a_fault_unless_the_client_left(abuse, faults, case):
    lost = abuse("cases").Outcome(error="connection reset")
    assert faults(case(), lost)
    assert faults(case(), abuse("cases").Outcome(left=True)) == []


@pytest.mark.parametrize(
    ("kind", "value", "right", "wrong"),
    [
        ("choice", ["yes", "no"], "no", "no "),
        ("regex", "[0-9]{3}", "123", "1234"),
        ("json", {"a": "integer"}, '{"a": 3}', '{"a": true}'),
        ("json", {"a": "integer"}, '{"a": 3}', '{"a": -3}'),
        ("json", {"a": "boolean", "b": ["x"]}, '{"a": true, "b": "x"}', '{"a": true, "b": "y"}'),
        ("json", {"a": "string"}, json.dumps({"a": "12 letters.."}), json.dumps({"a": "x" * 13})),
        ("json", {"a": "string"}, '{"a": ""}', '{"a": "", "b": 1}'),
        ("json", {"a": "string"}, '{"a": ""}', '{"a": "'),
    ],
)
def test_structured_output_is_checked(abuse, faults, case, outcome, kind, value, right, wrong):
    asked = case(constraint=abuse("cases").Constraint(kind, value))
    assert faults(asked, outcome(text=right, finish="stop")) == []
    (fault,) = faults(asked, outcome(text=wrong, finish="stop"))
    assert f"is not the {kind}" in fault
    assert faults(asked, outcome(text=wrong, finish="length")) == []
