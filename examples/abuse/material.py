"""The text that requests are made of, and their lengths."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = 128
"""Tokens of a block on CPUs: prefixes around it are found in the cache, or just not."""


@dataclass(frozen=True)
class Material:
    """The stuff that requests are made of.

    Attributes:
        text: tokens of a text.
        words: the same text.
        longest: tokens of the longest request, prompt and answer together.
    """

    text: Sequence[int]
    words: str
    longest: int

    def window(self, draw: random.Random, length: int) -> list[int]:
        """Take so many tokens of the text, from anywhere."""
        begin = draw.randrange(len(self.text))
        repeated = [*self.text[begin:], *self.text] * (1 + length // len(self.text))
        return repeated[:length]

    def excerpt(self, draw: random.Random, letters: int) -> str:
        """Take so many letters of the text, from anywhere."""
        begin = draw.randrange(max(1, len(self.words) - letters))
        return self.words[begin : begin + letters]


def lengths(draw: random.Random, longest: int) -> tuple[int, int]:
    """Draw the tokens of a prompt and of its answer, at least one each, of any order of size."""
    prompt = log_uniform(draw, longest - 1)
    # Few long answers: each takes many steps, and a run should hold many requests.
    room = longest - prompt
    return prompt, log_uniform(draw, room if draw.random() < 0.05 else min(room, 128))


def log_uniform(draw: random.Random, most: int) -> int:
    """Draw a whole number from 1 to ``most``, as often below its geometric mean as above."""
    return min(most, int(float(most + 1) ** draw.random()))
