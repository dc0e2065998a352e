"""The noise of a quiet server: how much the same token's log-probability moves by itself.

The order of a sum depends on how many requests share a step, on chunks of a prompt and on what the
prefix cache held; each moves a log-probability by the dtype's rounding, and where rows are coded,
by codes that fall to the other side of their boundaries, which move the codes of later layers. A
few requests are made one after the other, then all at once, and what they claim is compared with
their scores.
"""

import asyncio
import dataclasses
import random
from dataclasses import dataclass

from abuse.cases import COMPLETIONS, Case
from abuse.client import Client, UnansweredError
from abuse.material import BLOCK, Material
from abuse.scores import Claim, Quiet, Tolerance, claims, compare, score

ANSWER_TOKENS = 24
LENGTHS = (1, 2, 5, 17, 33, 100, 127, 129, 300, 600)
"""Tokens of the prompts."""

MARGIN = 5.0
"""The tolerance over the largest noise measured.

A run has some hundred times as many tokens as the measurement, and steps of more kinds. The largest
of so many differences is one and a half times as large where they fall off as a normal
distribution does, and a few times as large where they fall off as an exponential one does.
"""
RMS_MARGIN = 3.0
"""The tolerance over the largest root mean square of a request, whose tail is shorter."""
FLOAT32_FLOOR = 4e-4
"""The bound that the tests of the engine have in float32 against transformers."""
COARSE_LIMIT = 0.5
"""The largest noise of bfloat16 and of coded rows.

The coded demo in transformers, in float32, differs from itself by up to 0.12 between one forward
pass and one token at a time.
"""


@dataclass(frozen=True)
class Noise:
    """The noise, and texts to find again.

    Attributes:
        largest: largest difference of a log-probability, in nats.
        tokens: number of tokens compared.
        rms: largest root mean square of a request's differences.
        tolerance: the differences that are still noise.
        sentinels: claims of a fresh server with their scores.
    """

    largest: float
    tokens: int
    rms: float
    tolerance: Tolerance
    sentinels: list[tuple[Claim, Quiet]]


async def measure(client: Client, material: Material, capacity: int, seed: int) -> Noise:
    """Measure a quiet server against itself.

    Args:
        client: of the server.
        material: the text to take prompts from.
        capacity: tokens of its cache, which the requests at once have to fit in.
        seed: of the prompts.

    Raises:
        UnansweredError: it does not answer.
    """
    draw = random.Random(f"{seed}/noise")
    cases = [
        _case(material.window(draw, length))
        for length in LENGTHS
        if length + ANSWER_TOKENS <= material.longest
    ]
    alone = [await _claim(client, case) for case in cases]
    together: list[Claim] = []
    for batch in _batches(cases, capacity):
        together += await asyncio.gather(*(_claim(client, case) for case in batch))
    largest, rms, tokens, sentinels = 0.0, 0.0, 0, []
    for claim in alone + together:
        quiet = await score(client, claim.tokens, material.longest)
        difference = compare(claim, quiet)
        largest, rms = max(largest, difference.largest), max(rms, difference.rms)
        tokens += difference.tokens
        sentinels.append((claim, quiet))
    tolerance = Tolerance(
        max(MARGIN * largest, FLOAT32_FLOOR), max(RMS_MARGIN * rms, FLOAT32_FLOOR)
    )
    return Noise(largest, tokens, rms, tolerance, sentinels[: len(alone)])


def _case(prompt: list[int]) -> Case:
    options = {
        "prompt": prompt,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }
    return Case(0, "noise", COMPLETIONS, options)


async def _claim(client: Client, case: Case) -> Claim:
    outcome = await client.send(case)
    found = claims(case, outcome)
    if not found:
        raise UnansweredError(f"no answer to a plain request: {outcome.status} {outcome.error}")
    # Near ties are no noise to be measured here.
    return dataclasses.replace(found[0], greedy_from=len(found[0].tokens))


def _batches(cases: list[Case], capacity: int) -> list[list[Case]]:
    """Divide cases into batches that fit into the cache, whole blocks each."""
    batches: list[list[Case]] = [[]]
    room = capacity
    for case in cases:
        tokens = len(case.options["prompt"]) + ANSWER_TOKENS
        needed = -(-tokens // BLOCK) * BLOCK
        if needed > room and batches[-1]:
            batches.append([])
            room = capacity
        batches[-1].append(case)
        room -= needed
    return batches
