import importlib
import random
from pathlib import Path

import pytest

EXAMPLES = str(Path(__file__).parents[3] / "examples")


@pytest.fixture
def abuse(monkeypatch):
    """The modules of ``examples/abuse``, by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name: importlib.import_module(f"abuse.{name}")


@pytest.fixture
def material(abuse):
    draw = random.Random(0)
    words = "".join(draw.choices("the quick brown fox, jumps.\n", k=5000))
    return abuse("material").Material([ord(x) for x in words], words, 2048)


@pytest.fixture
def case(abuse):
    """Make a case of a plain greedy request, with changes."""
    cases = abuse("cases")

    def make(options=None, **changes):
        body = {"prompt": [1, 2], "max_tokens": 3, "temperature": 0, "return_token_ids": True}
        return cases.Case(0, "greedy", cases.COMPLETIONS, body | (options or {}), **changes)

    return make


@pytest.fixture
def outcome(abuse):
    """Make an answer of three tokens, with changes to the choice."""
    cases = abuse("cases")

    def make(status=200, **changes):
        plain = {"text": "abc", "tokens": [5, 6, 7], "logprobs": [-1.0, -2.0, 0.0]}
        choice = cases.Choice(**plain | {"finish": "length"} | changes)
        return cases.Outcome(status=status, prompt=[1, 2], choices={0: choice})

    return make
