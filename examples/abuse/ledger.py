"""The book of a run: what was asked, what came, and what was wrong."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from abuse.cases import Case, Outcome
from abuse.scores import Claim, Difference, Quiet

MOST_KEPT = 50
"""Findings kept with request and answer; more are counted."""


@dataclass(frozen=True)
class Check:
    """One line of the verdict.

    Attributes:
        name: the thing that was checked.
        ok: true if it holds; None where the run was too short to tell.
        figure: what was measured, beside the bound.
    """

    name: str
    ok: bool | None
    figure: str


@dataclass
class Ledger:
    """All that a run found.

    Attributes:
        requests: number of requests by kind.
        left: requests whose client left.
        refused: wrong requests that were refused.
        wrong: number of answers with a fault of form.
        tokens, unlike: tokens compared with a quiet server; answers that differ beyond the noise.
        largest, lead: largest difference of a log-probability, largest lead of another token.
        squares: sum of the squares of all differences.
        drift: largest difference of a sentinel from its own score at the start.
        memory: resident bytes of the idle server after each round.
        held: rounds after which requests or blocks were still in use, in words.
        died: why the run ended early.
        findings: faults with all that is needed to repeat them.
    """

    requests: Counter[str] = field(default_factory=Counter)
    left: int = 0
    refused: int = 0
    wrong: int = 0
    tokens: int = 0
    unlike: int = 0
    largest: float = 0.0
    lead: float = 0.0
    squares: float = 0.0
    drift: float = 0.0
    memory: list[int] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    died: str | None = None
    findings: list[dict[str, Any]] = field(default_factory=list)

    def count(self, case: Case, outcome: Outcome) -> None:
        """Count a request."""
        self.requests[case.kind] += 1
        self.left += outcome.left
        self.refused += case.refused is True and 400 <= outcome.status < 500

    def measure(self, difference: Difference) -> None:
        """Add what a comparison with a quiet server found."""
        self.tokens += difference.tokens
        self.largest = max(self.largest, difference.largest)
        self.lead = max(self.lead, difference.lead)
        self.squares += difference.tokens * difference.rms**2

    def fault(self, case: Case, outcome: Outcome, fault: str) -> None:
        """Keep an answer that is wrong by itself."""
        self.wrong += 1
        self._keep(case, fault, {"status": outcome.status, "answer": _answers(outcome)})

    def difference(
        self,
        case: Case,
        claim: Claim,
        quiet: Quiet,
        difference: Difference,
        again: Outcome | None,
    ) -> None:
        """Keep an answer that a quiet server would not have given."""
        self.unlike += 1
        fault = (
            f"log-probability off by {difference.largest:.3g} at token {difference.at}, another "
            f"token ahead by {difference.lead:.3g} at token {difference.lead_at}, root mean square "
            f"{difference.rms:.3g} over {difference.tokens} tokens"
        )
        details = {
            "tokens": claim.tokens,
            "start": claim.start,
            "logprobs": claim.logprobs,
            "quiet_logprobs": quiet.logprobs[claim.start - 1 :],
            "quiet_first_choices": quiet.first_tokens[claim.start - 1 :],
            "quiet_answer": _answers(again) if again else None,
        }
        self._keep(case, fault, details)

    def _keep(self, case: Case, fault: str, details: dict[str, Any]) -> None:
        if len(self.findings) < MOST_KEPT:
            body = case.body if isinstance(case.body, dict) else repr(case.body[:2000])
            request = {"number": case.number, "kind": case.kind, "path": case.path, "body": body}
            leaving = vars(case.leaving) if case.leaving else None
            self.findings.append({"fault": fault, **request, "leaving": leaving, **details})


def _answers(outcome: Outcome) -> list[dict[str, Any]] | str | None:
    if outcome.error:
        return outcome.error
    return [vars(choice) for _, choice in sorted(outcome.choices.items())]
