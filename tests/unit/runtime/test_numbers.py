import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion.runtime.numbers import ceil_div, span


@given(st.integers(0, 10**30), st.integers(1, 10**20))
def test_division_rounds_up_exactly(amount, size):
    assert ceil_div(amount, size) == math.ceil(Fraction(amount, size))


@pytest.mark.parametrize(("values", "words"), [([3], "3"), ([3, 3], "3"), ([5, 3, 4], "3 to 5")])
def test_a_range_in_words(values, words):
    assert span(values) == words
