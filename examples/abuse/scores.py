"""The judgement of tokens: their log-probabilities under load against those of a quiet server.

A quiet server reads prompt and answer as one prompt, alone and past the prefix cache, and says each
token's log-probability and the first choice in its place. So every token is judged, those behind
a near tie too, where a second greedy run would go on with another text.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from abuse.cases import COMPLETIONS, Case, Outcome
from abuse.client import Client, UnansweredError

FEW = 8
"""Fewer tokens tell nothing by their mean that each does not tell by itself."""


@dataclass(frozen=True)
class Claim:
    """Tokens, and the log-probabilities that the server under load gave them.

    Attributes:
        tokens: of prompt and answer.
        start: the first token with a log-probability.
        logprobs: of ``tokens[start:]``.
        greedy_from: tokens from here on have to be first choices; ``len(tokens)`` if none.
    """

    tokens: list[int]
    start: int
    logprobs: list[float]
    greedy_from: int


@dataclass(frozen=True)
class Quiet:
    """The same tokens on a quiet server, all but the first.

    Attributes:
        logprobs: of each token.
        first_logprobs, first_tokens: the first choice in its place.
    """

    logprobs: list[float]
    first_logprobs: list[float]
    first_tokens: list[int]


@dataclass(frozen=True)
class Tolerance:
    """The differences that are still noise, in nats.

    Attributes:
        token: of one token's log-probability.
        answer: root mean square over a claim of ``FEW`` tokens or more.
    """

    token: float
    answer: float


@dataclass(frozen=True)
class Difference:
    """The distance of a claim from a quiet server, in nats.

    Attributes:
        tokens: number of tokens compared.
        largest: largest difference of a token's log-probability.
        at: the place of that token.
        lead: largest lead of a quiet first choice over the token chosen as one.
        lead_at: the place of that token.
        rms: root mean square of the log-probabilities' differences.
    """

    tokens: int
    largest: float
    at: int
    lead: float
    lead_at: int
    rms: float

    def within(self, tolerance: Tolerance) -> bool:
        """Tell if the claim holds.

        A token that won under load trails quietly by no more than the noise of both candidates.
        """
        token, answer = tolerance.token, tolerance.answer
        long = self.tokens >= FEW
        return self.largest <= token and self.lead <= 2 * token and not (long and self.rms > answer)


def claims(case: Case, outcome: Outcome) -> list[Claim]:
    """List what an answer, or the part of it that came, claims."""
    if not case.scored or not outcome.prompt:
        return []
    prompt, found = outcome.prompt, []
    for choice in outcome.choices.values():
        if len(choice.logprobs) != len(choice.tokens):
            continue  # an answer with this fault is reported as such
        before = outcome.prompt_logprobs[1:]
        tokens = prompt + choice.tokens
        found.append(
            Claim(
                tokens=tokens,
                start=1 if before else len(prompt),
                logprobs=[x if x is not None else math.nan for x in before + choice.logprobs],
                greedy_from=len(prompt) if case.greedy else len(tokens),
            )
        )
    return [claim for claim in found if claim.logprobs]


async def score(client: Client, tokens: list[int], longest: int) -> Quiet:
    """Let a quiet server score tokens.

    Args:
        client: of the server.
        tokens: of prompt and answer.
        longest: tokens of the longest request; of as many tokens the last stays without a score.

    Raises:
        UnansweredError: it does not.
    """
    read = tokens[: longest - 1]
    body = {"prompt": read, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    answer = await client.ask(COMPLETIONS, body)
    try:
        (choice,) = json.loads(answer)["choices"]
        rows = [
            (float(entries[str(token)]["logprob"]), *_first(entries))
            for token, entries in zip(read[1:], choice["prompt_logprobs"][1:], strict=True)
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise UnansweredError(f"no scores of a prompt but {answer[:500]}") from error
    return Quiet(
        logprobs=[own for own, _, _ in rows],
        first_logprobs=[first for _, first, _ in rows],
        first_tokens=[token for _, _, token in rows],
    )


def _first(entries: dict[str, Any]) -> tuple[float, int]:
    """The best log-probability in a place, and its token."""
    return max((float(entry["logprob"]), int(name)) for name, entry in entries.items())


def compare(claim: Claim, quiet: Quiet) -> Difference:
    """Measure how far a claim is from a quiet server; NaN counts as infinitely far."""
    largest, at, lead, lead_at, squares = 0.0, claim.start, 0.0, claim.start, 0.0
    end = min(len(claim.tokens), len(quiet.logprobs) + 1)
    for place in range(claim.start, end):
        expected = quiet.logprobs[place - 1]
        difference = abs(claim.logprobs[place - claim.start] - expected)
        if math.isnan(difference):
            difference = math.inf
        if difference > largest:
            largest, at = difference, place
        squares += difference**2
        behind = quiet.first_logprobs[place - 1] - expected
        if place >= claim.greedy_from and behind > lead:
            lead, lead_at = behind, place
    tokens = max(0, end - claim.start)
    rms = math.sqrt(squares / tokens) if tokens else 0.0
    return Difference(tokens, largest, at, lead, lead_at, rms)
