"""The plan: a seed and a number make a request, the same one every time."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from abuse.cases import CHAT, COMPLETIONS, Case, Leaving
from abuse.constrained import constrained
from abuse.material import BLOCK, Material, lengths, log_uniform
from abuse.wrong import wrong

# Words that end many an answer early.
STOPS = (".", ",", "\n", " the", "and", ":", "is")
Maker = Callable[[random.Random, Material, int], Case]


class Plan:
    """Endless requests, each from the seed and its number alone.

    Args:
        seed: of all of them.
        material: what they are made of.
        kinds: the kinds to make; all by default.
    """

    def __init__(self, seed: int, material: Material, kinds: Sequence[str] = ()) -> None:
        self.seed = seed
        self._material = material
        self._kinds = {name: KINDS[name] for name in kinds or KINDS}

    def case(self, number: int) -> Case:
        """Make the request with this number."""
        draw = random.Random(f"{self.seed}/{number}")
        weights = [weight for weight, _ in self._kinds.values()]
        (kind,) = draw.choices(list(self._kinds), weights)
        made = self._kinds[kind][1](draw, self._material, number)
        return dataclasses.replace(made, kind=kind)


def _greedy(draw: random.Random, material: Material, number: int) -> Case:
    prompt, answer = lengths(draw, material.longest)
    return _completion(draw, number, material.window(draw, prompt), answer)


def _noise(draw: random.Random, material: Material, number: int) -> Case:
    prompt, answer = lengths(draw, material.longest)
    return _completion(draw, number, draw.choices(material.text, k=prompt), answer)


def _full(draw: random.Random, material: Material, number: int) -> Case:
    """A request as long as any may be."""
    answer = draw.choice([1, 2, 17])
    return _completion(draw, number, material.window(draw, material.longest - answer), answer)


def _prefix(draw: random.Random, material: Material, number: int) -> Case:
    """One of a few prefixes, which the cache may hold, and something of its own."""
    which = draw.randrange(4)
    length = min((BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 1, 7 * BLOCK)[which], material.longest // 2)
    head = material.window(random.Random(f"prefix {which}"), length)
    tail = material.window(draw, draw.choice([0, 1, draw.randrange(1, BLOCK)]))
    return _completion(draw, number, head + tail, log_uniform(draw, 64))


def _sampled(draw: random.Random, material: Material, number: int) -> Case:
    case = _greedy(draw, material, number)
    options = case.options | {
        "temperature": draw.choice([0.3, 0.8, 1.0, 1.5]),
        "seed": draw.randrange(1 << 31),
        "n": draw.choice([1, 1, 2, 4]),
    }
    options |= draw.choice([{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}])
    options["max_tokens"] = min(options["max_tokens"], 64)
    return dataclasses.replace(case, body=options)


def _moved(draw: random.Random, material: Material, number: int) -> Case:
    """A greedy request whose first choices are moved by a bias or a penalty."""
    case = _greedy(draw, material, number)
    token = draw.choice(material.text)
    few = frozenset(draw.choices(material.text, k=5))
    moves: list[tuple[dict[str, Any], frozenset[int] | None]] = [
        ({"logit_bias": {str(token): 100}}, frozenset([token])),
        ({"allowed_token_ids": sorted(few)}, few),
        ({"repetition_penalty": 1.3}, None),
        ({"presence_penalty": 1.5}, None),
    ]
    change, only = draw.choice(moves)
    return dataclasses.replace(case, body=case.options | change, only=only)


def _stopped(draw: random.Random, material: Material, number: int) -> Case:
    case = _greedy(draw, material, number)
    options = case.options | {"stop": draw.sample(STOPS, draw.randrange(1, 4)), "ignore_eos": False}
    most = options["max_tokens"]
    if draw.random() < 0.5:
        options["min_tokens"] = draw.randrange(1, most + 1)
    return dataclasses.replace(case, body=options)


def _scored(draw: random.Random, material: Material, number: int) -> Case:
    """A request for the log-probabilities of its prompt."""
    prompt, _ = lengths(draw, material.longest)
    case = _completion(draw, number, material.window(draw, prompt), 1)
    options = {key: value for key, value in case.options.items() if key != "stream"}
    return dataclasses.replace(case, body=options | {"prompt_logprobs": 0})


def _chat(draw: random.Random, material: Material, number: int) -> Case:
    # A token has at least one letter, so this is no longer than a quarter of the longest request.
    letters = log_uniform(draw, material.longest // 4)
    messages = [{"role": "user", "content": material.excerpt(draw, letters)}]
    if draw.random() < 0.5:
        shared = material.excerpt(random.Random("system"), material.longest // 8)
        messages.insert(0, {"role": "system", "content": shared})
    return Case(
        number,
        "",
        CHAT,
        {
            "messages": messages,
            "max_tokens": log_uniform(draw, 64),
            "temperature": 0,
            "logprobs": True,
            "return_token_ids": True,
            "stream": draw.random() < 0.5,
        },
    )


def _leaving(draw: random.Random, material: Material, number: int) -> Case:
    """A request whose client does not wait for the end."""
    maker = draw.choice([_greedy, _full, _prefix, _sampled, _chat])
    case = maker(draw, material, number)
    leaving = draw.choice(
        [
            Leaving(halfway=True),
            Leaving(seconds=draw.uniform(0, 0.05)),
            Leaving(seconds=draw.uniform(0.05, 3)),
            Leaving(seconds=draw.uniform(3, 20)),
            Leaving(chunks=log_uniform(draw, 32)),
        ]
    )
    options = case.options | ({"stream": True} if leaving.chunks else {})
    return dataclasses.replace(case, body=options, leaving=leaving)


def _completion(draw: random.Random, number: int, prompt: list[int], answer: int) -> Case:
    return Case(
        number,
        "",
        COMPLETIONS,
        {
            "prompt": prompt,
            "max_tokens": answer,
            "temperature": 0,
            "logprobs": 0,
            "ignore_eos": draw.random() < 0.8,
            "return_token_ids": True,
            "stream": draw.random() < 0.5,
        },
    )


KINDS: dict[str, tuple[float, Maker]] = {
    "greedy": (20, _greedy),
    "random tokens": (6, _noise),
    "as long as may be": (3, _full),
    "shared prefix": (15, _prefix),
    "sampled": (10, _sampled),
    "bias or penalty": (5, _moved),
    "stop": (6, _stopped),
    "prompt scored": (5, _scored),
    "chat": (10, _chat),
    "structured": (8, constrained),
    "cancelled": (15, _leaving),
    "wrong": (12, wrong),
}
"""The kinds of requests, with their shares."""
