"""The judgement of an answer by itself: status, length, stop strings, form."""

import math
from collections.abc import Iterator

from abuse.cases import Case, Choice, Outcome
from abuse.constrained import satisfies

# vLLM writes this for minus infinity.
IMPOSSIBLE = -9000.0


def faults(case: Case, outcome: Outcome) -> list[str]:
    """List what is wrong with an answer, one line each."""
    if outcome.status >= 500:
        return [f"status {outcome.status}: {outcome.error}"]
    if case.refused:
        return [] if outcome.status >= 400 else [f"not refused, status {outcome.status}"]
    if case.refused is None:
        return [] if outcome.status else [f"no answer: {outcome.error}"]
    if outcome.error:
        return [f"status {outcome.status}: {outcome.error}"]
    if outcome.left:
        # What came until then is judged by its log-probabilities alone.
        return [fault for choice in outcome.choices.values() for fault in _logprobs(case, choice)]
    expected = case.options.get("n", 1)
    if sorted(outcome.choices) != list(range(expected)):
        return [f"answers {sorted(outcome.choices)} where {expected} were asked for"]
    return [
        fault
        for choice in outcome.choices.values()
        for part in (_length, _text, _logprobs)
        for fault in part(case, choice)
    ]


def _length(case: Case, choice: Choice) -> Iterator[str]:
    if choice.finish not in ("stop", "length"):
        yield f"finish_reason {choice.finish}"
    if not case.options.get("return_token_ids"):
        return
    most, least = case.options["max_tokens"], case.options.get("min_tokens", 0)
    tokens = len(choice.tokens)
    if tokens > most or (choice.finish == "length" and tokens != most):
        yield f"{tokens} tokens, finish_reason {choice.finish}, where max_tokens is {most}"
    if tokens < least:
        yield f"{tokens} tokens where min_tokens is {least}"
    if case.only and not case.only.issuperset(choice.tokens):
        yield f"tokens {sorted(set(choice.tokens) - case.only)} that were not allowed"


def _text(case: Case, choice: Choice) -> Iterator[str]:
    least = case.options.get("min_tokens", 0)
    for word in case.options.get("stop", ()):
        # Within the first min_tokens it may stand, and a token may hold more than the word.
        if word in choice.text and not least:
            yield f"the stop string {word!r} in the text"
    if case.constraint and choice.finish == "stop" and not satisfies(choice.text, case.constraint):
        yield f"{choice.text!r} is not the {case.constraint.kind} asked for"


def _logprobs(case: Case, choice: Choice) -> Iterator[str]:
    if not case.options.get("return_token_ids"):
        return
    if len(choice.logprobs) != len(choice.tokens):
        yield f"{len(choice.tokens)} tokens with {len(choice.logprobs)} log-probabilities"
    bad = [x for x in choice.logprobs if x is None or not math.isfinite(x) or x > 0.0]
    if bad or (case.greedy and any((x or 0) < IMPOSSIBLE for x in choice.logprobs)):
        yield f"log-probabilities such as {[*bad, *choice.logprobs][0]}"
